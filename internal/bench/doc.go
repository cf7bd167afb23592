// Package bench measures what an upgrade costs, with real processes of
// cmd/demo. Its benchmarks are what scripts/bench.sh runs; docs/benchmarks.md
// says what they mean.
package bench
