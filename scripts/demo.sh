#!/bin/sh
# Upgrades a server under load, ten times, and once to a binary that crashes;
# prints what its clients noticed.

usage() {
	cat <<'END'
Usage: demo.sh [DEPLOYS]

Builds two versions of cmd/demo, starts the first one on a free loopback port,
puts clients on it that never retry (upgradectl probe), and deploys the two
versions in turn, 10 times or DEPLOYS times, with scripts/deploy.sh. Then it
deploys a binary that crashes one second after it is ready. It prints a table of
the requests and their latency, and needs nothing but Go. With PLOT=FILE.svg in
the environment it draws them too.

The exit code is 0 if no request was lost and every deploy ended as it must. A
process that crashes takes with it what it is just answering; those requests
are in a column of their own, cut.
END
}

say() { echo "demo: $*"; }

die() {
	say "$*" >&2
	tail -n 20 "$dir"/*.log >&2 2>/dev/null
	exit 1
}

# processes prints the pids that have written to the log and are alive.
processes() {
	sed -n 's/.*"pid":\([0-9]*\).*/\1/p' "$dir/server.log" | sort -u | while read -r pid; do
		if kill -0 "$pid" 2>/dev/null; then echo "$pid"; fi
	done
}

# wait_for SECONDS COMMAND… until it succeeds.
wait_for() {
	tries=$(($1 * 20))
	shift
	until "$@"; do
		tries=$((tries - 1))
		[ $tries -gt 0 ] || return 1
		sleep 0.05
	done
}

serves() { [ -s "$dir/app.pid" ] && [ -n "$(address)" ]; }
address() { sed -n 's/.*"http-0":"\([^"]*\)".*/\1/p' "$dir/server.log" | head -n 1; }
nobody() { [ -z "$(processes)" ]; }

# clean_up ends what was started here, by its pid, and leaves no file.
clean_up() {
	trap '' HUP INT TERM
	exec 3>&- # the end of its commands ends the probe
	for signal in TERM TERM KILL; do
		for pid in $(processes); do kill -"$signal" "$pid" 2>/dev/null; done
		wait_for 5 nobody && break
	done
	rm -rf "$dir"
}

# deploy FILE EXPECTED says how it went if it went otherwise.
deploy() {
	echo mark >&3
	UPGRADECTL="$dir/upgradectl" DEPLOY_TIMEOUT=60 "$scripts/deploy.sh" "$1" "$dir/demo" "$dir/app.pid" >"$dir/deploy.log" 2>&1
	code=$?
	[ $code = "$2" ] || die "deploy.sh ended with $code, want $2: $(cat "$dir/deploy.log")"
}

case $1 in
-h | --help)
	usage
	exit 0
	;;
'' | *[!0-9]*)
	if [ $# != 0 ]; then
		usage >&2
		exit 2
	fi
	;;
esac
deploys=${1:-10}
scripts=$(cd -- "$(dirname -- "$0")" && pwd) || exit 1
dir=$(mktemp -d) || exit 1
: >"$dir/server.log"
trap clean_up EXIT
trap 'exit 130' HUP INT TERM

say "building"
cd -- "$scripts/.." || exit 1
for version in v1 v2; do
	go build -ldflags "-X main.version=$version" -o "$dir/$version" ./cmd/demo || die "cannot build"
done
go build -ldflags "-X main.fault=crash-after-ready:1s" -o "$dir/faulty" ./internal/proctest/faulty || die "cannot build"
go build -C cmd/upgradectl -o "$dir/upgradectl" . || die "cannot build"

cp "$dir/v1" "$dir/demo"
"$dir/demo" -listen 127.0.0.1:0 -pidfile "$dir/app.pid" -probation 2s -drain-timeout 10s -log json 2>>"$dir/server.log" &
wait_for 10 serves || die "the server does not start"
say "v1 serves on http://$(address), process $(cat "$dir/app.pid")"

mkfifo "$dir/commands"
url=http://$(address)
"$dir/upgradectl" probe -commands -duration 10m -rate 0 -think 10ms -new 4 -keep 16 -expect 200 -body demo ${PLOT:+-plot "$PLOT"} \
	"$url/" POST "$url/echo" "$url/slow?ms=200" "$url/stream?ms=200" <"$dir/commands" >"$dir/table" 3>&- &
load=$!
exec 3>"$dir/commands"

echo "say steady" >&3
sleep 2
n=0
while [ "$n" -lt "$deploys" ]; do
	n=$((n + 1))
	version=v$((n % 2 + 1))
	echo "say upgrade $n of $deploys, to $version" >&3
	deploy "$dir/$version" 0
	echo mark >&3
done
sleep 1

echo "say a binary that crashes 1 s after it is ready" >&3
before=$(cat "$dir/app.pid")
deploy "$dir/faulty" 3
echo crashed >&3
echo mark >&3
[ "$(cat "$dir/app.pid")" = "$before" ] || die "after the crash the pidfile names $(cat "$dir/app.pid"), want $before"
sleep 1

exec 3>&-
wait "$load"
lost=$?
kill -TERM "$before"
wait_for 15 nobody || die "left behind: $(processes)"

cat "$dir/table"
say "$deploys upgrades, 1 rolled back, $(grep -c '"message":"drained"' "$dir/server.log") processes drained"
case $lost in
0) ;;
1)
	say "FAILED: requests were lost"
	exit 1
	;;
*) die "the probe ended with $lost" ;;
esac
cut=$(awk '$1 == "total" { print $5 }' "$dir/table")
say "no request was lost to an upgrade, $cut to the crash of the process that had accepted it"
