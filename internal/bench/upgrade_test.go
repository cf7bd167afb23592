//go:build linux

package bench

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"
)

// BenchmarkUpgrade compares the time from SIGUSR1 to the successor's first
// answer with that from exec to the first answer of the same binary started
// alone. Each iteration measures both, one after the other.
func BenchmarkUpgrade(b *testing.B) {
	const wantMiB, wantConns = 4096, 10000
	mib, conns := min(wantMiB, availableMiB(b)/2), min(wantConns, descriptors(b)-500)
	if mib < wantMiB || conns < wantConns {
		b.Logf("this machine has room for %d MiB of %d, and %d connections of %d", mib, wantMiB, conns, wantConns)
	}
	for _, c := range []struct {
		name       string
		onDisk     bool
		mib, conns int
	}{
		{name: "pidfile=tmpfs"},
		{name: "pidfile=disk", onDisk: true},
		{name: fmt.Sprintf("heap=%dMiB", mib), mib: mib},
		{name: fmt.Sprintf("conns=%d", conns), conns: conns},
		{name: fmt.Sprintf("heap=%dMiB,conns=%d", mib, conns), mib: mib, conns: conns},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := newServer(b, tempDir(b, c.onDisk), 1)
			s.fill(c.mib, c.conns)
			var alone, upgrade durations
			p := progress{b: b}
			for b.Loop() {
				inAnyOrder(
					func() { alone = append(alone, s.startAlone()) },
					func() { upgrade = append(upgrade, s.upgrade()) },
				)
				p.report()
			}
			s.holds(c.mib, c.conns)
			b.ReportMetric(alone.quantile(0.5), "start-ms")
			b.ReportMetric(upgrade.quantile(0.5), "upgrade-ms")
			b.ReportMetric(upgrade.quantile(0.5)/alone.quantile(0.5), "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkListeners tells how much longer an upgrade takes for each listener
// more than one.
func BenchmarkListeners(b *testing.B) {
	sizes := []int{1, 100, 1000}
	servers := make([]*server, len(sizes))
	dir := tempDir(b, false)
	for i, n := range sizes {
		own := fmt.Sprintf("%s/%d", dir, n)
		if err := os.Mkdir(own, 0o755); err != nil {
			b.Fatal(err)
		}
		servers[i] = newServer(b, own, n)
	}
	alone, upgrade := make([]durations, len(sizes)), make([]durations, len(sizes))
	p := progress{b: b}
	var each []func()
	for i, s := range servers {
		each = append(each,
			func() { alone[i] = append(alone[i], s.startAlone()) },
			func() { upgrade[i] = append(upgrade[i], s.upgrade()) },
		)
	}
	for b.Loop() {
		inAnyOrder(each...)
		p.report()
	}
	for i, n := range sizes[1:] {
		more := func(d []durations) float64 {
			return (d[i+1].quantile(0.5) - d[0].quantile(0.5)) * 1000 / float64(n-1)
		}
		b.ReportMetric(more(alone), fmt.Sprintf("start-us/listener-of-%d", n))
		b.ReportMetric(more(upgrade), fmt.Sprintf("upgrade-us/listener-of-%d", n))
	}
	b.ReportMetric(0, "ns/op")
}

// inAnyOrder does each once. What one measurement leaves behind, the end of a
// process with many sockets for one, disturbs the next one, which should not
// always be the same.
func inAnyOrder(measurements ...func()) {
	for _, i := range rand.Perm(len(measurements)) {
		measurements[i]()
	}
}

type durations []time.Duration

// quantile returns milliseconds: the median for 0.5.
func (d durations) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[int(math.Round(q*float64(len(d)-1)))].Seconds() * 1000
}

// progress prints a line each second, with go test -v.
type progress struct {
	b     *testing.B
	count int
	next  time.Time
}

func (p *progress) report() {
	p.b.Helper()
	p.count++
	if now := time.Now(); now.After(p.next) {
		p.next = now.Add(time.Second)
		p.b.Logf("measurement %d", p.count)
	}
}

// tempDir returns a directory that keeps its files in memory, or one that
// does not. It skips the benchmark if there is none.
func tempDir(b *testing.B, onDisk bool) string {
	b.Helper()
	for _, parent := range []string{"/dev/shm", os.TempDir(), "/var/tmp"} {
		const tmpfsMagic = 0x01021994
		var fs syscall.Statfs_t
		if syscall.Statfs(parent, &fs) != nil || (fs.Type == tmpfsMagic) == onDisk {
			continue
		}
		dir, err := os.MkdirTemp(parent, "handover-bench") //nolint:usetesting // b.TempDir has a directory of its choice
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				b.Error(err)
			}
		})
		return dir
	}
	b.Skipf("no directory whose files are on disk: %v", onDisk)
	return ""
}

// availableMiB is how much memory can be allocated without swapping.
func availableMiB(b *testing.B) int {
	b.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		b.Fatal(err)
	}
	var total, free, available int
	if _, err := fmt.Sscanf(string(text), "MemTotal: %d kB\nMemFree: %d kB\nMemAvailable: %d kB", &total, &free, &available); err != nil {
		b.Fatalf("/proc/meminfo: %v", err)
	}
	return available >> 10
}

// descriptors is how many a process may have open.
func descriptors(b *testing.B) int {
	b.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	return int(limit.Max)
}
