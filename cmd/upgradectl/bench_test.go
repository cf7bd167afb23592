//go:build unix

package main

import (
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
)

// BenchmarkUpgrade shows what upgradectl adds to a bare signal: from the
// beginning until whoever asked knows that the new process serves. Each loop
// does it both ways, so that whatever else the machine does concerns both.
func BenchmarkUpgrade(b *testing.B) {
	control := filepath.Join(b.TempDir(), "control")
	s := proctest.Start(b, proctest.Demo(b, "v1"), "-control", control, "-probation", "-1s")
	binary := filepath.Join(b.TempDir(), "upgradectl")
	if out, err := exec.CommandContext(b.Context(), "go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	var bare, asked, started time.Duration
	for b.Loop() {
		bare += measure(func() {
			now, old := s.Now(), s.PID()
			s.Signal(old, syscall.SIGUSR1)
			s.After(now, proctest.Changed(old, "draining"))
		})
		asked += measure(func() {
			now, old := s.Now(), s.PID()
			if out, err := exec.CommandContext(b.Context(), binary, "-socket", control, "upgrade").CombinedOutput(); err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
			s.After(now, proctest.Changed(old, "draining"))
		})
		started += measure(func() {
			if err := exec.CommandContext(b.Context(), binary, "-version").Run(); err != nil {
				b.Fatal(err)
			}
		})
	}
	n := float64(b.N)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(bare.Seconds()*1e3/n, "signal-ms")
	b.ReportMetric(asked.Seconds()*1e3/n, "upgradectl-ms")
	b.ReportMetric((asked-bare).Seconds()*1e3/n, "added-ms")
	b.ReportMetric(started.Seconds()*1e3/n, "start-ms")
}

func measure(f func()) time.Duration {
	begun := time.Now()
	f()
	return time.Since(begun)
}
