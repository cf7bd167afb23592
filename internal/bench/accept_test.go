//go:build linux

package bench

import (
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/go-handover/handover/upgrader"
)

// BenchmarkAccept compares Accept of an upgrader.Listener with that of package
// net. Each iteration measures both, one after the other, with connections
// that wait in the queue already.
func BenchmarkAccept(b *testing.B) {
	bare, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer bare.Close()
	u, err := upgrader.New(upgrader.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer u.Stop()
	gate, err := u.Listen(b.Context(), "bench", "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer gate.Close()
	if err := u.Ready(); err != nil {
		b.Fatal(err)
	}
	var bareTime, gateTime durations
	var bareAllocs, gateAllocs []uint64
	for b.Loop() {
		d, n := acceptAll(b, bare)
		bareTime, bareAllocs = append(bareTime, d), append(bareAllocs, n)
		d, n = acceptAll(b, gate)
		gateTime, gateAllocs = append(gateTime, d), append(gateAllocs, n)
	}
	const ns = 1e6 / queued
	b.ReportMetric(bareTime.quantile(0.25)*ns, "bare-q25-ns")
	b.ReportMetric(bareTime.quantile(0.5)*ns, "bare-ns")
	b.ReportMetric(bareTime.quantile(0.75)*ns, "bare-q75-ns")
	b.ReportMetric(gateTime.quantile(0.5)*ns, "gate-ns")
	b.ReportMetric(least(bareAllocs)/queued, "bare-allocs")
	b.ReportMetric(least(gateAllocs)/queued, "gate-allocs")
	b.ReportMetric(0, "ns/op")
}

// queued is how many connections are accepted in one measurement.
const queued = 64

// acceptAll returns how long it takes to accept the connections, and how many
// allocations there were meanwhile.
func acceptAll(b *testing.B, ln net.Listener) (time.Duration, uint64) {
	b.Helper()
	var conns [2 * queued]net.Conn
	for i := range queued {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		conns[queued+i] = c
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	begun := time.Now()
	for i := range queued {
		c, err := ln.Accept()
		if err != nil {
			b.Fatal(err)
		}
		conns[i] = c
	}
	took := time.Since(begun)
	runtime.ReadMemStats(&after)
	for _, c := range conns {
		c.Close()
	}
	return took, after.Mallocs - before.Mallocs
}

// least is what remains without the allocations of others.
func least(n []uint64) float64 {
	l := n[0]
	for _, v := range n {
		l = min(l, v)
	}
	return float64(l)
}
