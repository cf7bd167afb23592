#!/bin/sh
# Measures what docs/benchmarks.md explains, and prints each figure with its
# goal. A goal that is missed is a result, not a failure.
set -eu
cd "$(dirname "$0")/.."

usage() {
	cat <<'END'
Usage: scripts/bench.sh [PAIRS]

Measures the figures of docs/benchmarks.md with real processes, and prints a
table with goal, measured, and verdict. PAIRS is how many upgrades, and starts
to compare them with, are behind each figure (81). It takes about five
minutes and 5 GiB of memory. More PAIRS take longer and tell more on a busy
machine.

Exit codes:
  0  measured, whatever the verdicts
  1  a benchmark failed
  5  wrong usage
END
}

case ${1-81} in
-h | --help)
	usage
	exit 0
	;;
*[!0-9]* | '')
	usage >&2
	exit 5
	;;
esac
pairs=${1-81}

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM

# run COUNT PATTERN measures, shows it, and keeps it for the table.
run() {
	{
		code=0
		${GO:-go} test -v -run '^$' -bench "$2" -benchtime "$1x" -timeout 20m ./internal/bench/ || code=$?
		echo "$code" >"$dir/code"
	} 2>&1 | tee -a "$dir/out"
	if [ "$(cat "$dir/code")" != 0 ]; then
		exit 1
	fi
}

run 301 '^BenchmarkAccept$'
run 31 '^BenchmarkMemory$'
run 41 '^BenchmarkThroughput$'
run "$pairs" '^BenchmarkListeners$'
run "$pairs" '^BenchmarkUpgrade$'
run "$pairs" '^BenchmarkTrigger$'

awk '
	function row(figure, goal, measured, met) {
		printf "%-47s  %-13s  %-30s  %s\n", figure, goal, measured, met ? "met" : "MISSED"
	}
	BEGIN {
		printf "\n%-47s  %-13s  %-30s  %s\n", "figure", "goal", "measured", "verdict"
	}
	# A result has values, each before its unit.
	/^Benchmark/ && NF > 3 {
		name = $1
		sub(/-[0-9]+$/, "", name)
		for (i = 3; i < NF; i += 2) v[$(i + 1)] = $i
	}
	name == "BenchmarkAccept" {
		row("Accept through the gate, against a bare listener", "within noise",
			sprintf("%d ns, bare %d to %d ns", v["gate-ns"], v["bare-q25-ns"], v["bare-q75-ns"]),
			v["gate-ns"] <= v["bare-q75-ns"])
		row("the same, allocations", "none more", sprintf("%.2f, bare %.2f", v["gate-allocs"], v["bare-allocs"]),
			v["gate-allocs"] <= v["bare-allocs"])
	}
	name == "BenchmarkMemory" {
		row("memory in the first generation", "<= 64 KiB", sprintf("%.0f KiB", v["first-KiB"]), v["first-KiB"] <= 64)
		row("the same, goroutines", "<= 4", v["first-goroutines"] + 0, v["first-goroutines"] <= 4)
		row("memory in the second generation", "<= 64 KiB", sprintf("%.0f KiB", v["second-KiB"]), v["second-KiB"] <= 64)
		row("the same, goroutines", "<= 4", v["second-goroutines"] + 0, v["second-goroutines"] <= 4)
	}
	name == "BenchmarkThroughput" {
		row("throughput through httpgrace, against net/http", ">= 0.99",
			sprintf("%.3f (%d / %d a second)", v["ratio"], v["wrapped-rps"], v["bare-rps"]), v["ratio"] >= 0.99)
	}
	name == "BenchmarkListeners" {
		for (n = 100; n <= 1000; n *= 10) {
			us = v["upgrade-us/listener-of-" n]
			row("upgrade with " n " listeners, each more than one", "<= 30 us",
				sprintf("%.1f us (started alone %.1f)", us, v["start-us/listener-of-" n]), us <= 30)
		}
	}
	name ~ /^BenchmarkUpgrade\// {
		sub(/.*\//, "", name)
		row("upgrade, " name, "<= 1.3 starts",
			sprintf("%.2f (%.1f / %.1f ms)", v["ratio"], v["upgrade-ms"], v["start-ms"]), v["ratio"] <= 1.3)
	}
	name == "BenchmarkTrigger" {
		row("upgradectl upgrade, more than SIGUSR1", "< 5 ms",
			sprintf("%.1f ms (%.1f - %.1f)", v["upgradectl-adds-ms"], v["upgradectl-ms"], v["signal-ms"]), v["upgradectl-adds-ms"] < 5)
		row("its request alone, more than SIGUSR1", "< 5 ms",
			sprintf("%.1f ms (%.1f - %.1f)", v["request-adds-ms"], v["request-ms"], v["signal-ms"]), v["request-adds-ms"] < 5)
	}
	{ name = "" }
' "$dir/out"
