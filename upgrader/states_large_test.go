//go:build linux

package upgrader

import (
	"bufio"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// envStateGiB is how large the state of TestStateOfManyGiB is.
const (
	envStateGiB     = "HANDOVER_STATE_GIB"
	defaultStateGiB = 0.25
)

// TestStateOfManyGiB: it arrives as it was, the pause at commit does not grow
// with it, and its memory is there once.
func TestStateOfManyGiB(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes memory")
	}
	gib := defaultStateGiB
	if s := os.Getenv(envStateGiB); s != "" {
		var err error
		if gib, err = strconv.ParseFloat(s, 64); err != nil || gib <= 0 {
			t.Fatalf("%s=%q: want a number of GiB", envStateGiB, s)
		}
	}
	size := int64(gib * (1 << 30))
	for name, changes := range map[string]string{"unchanged": "", "written, with a difference at commit": counterDelta} {
		t.Run(name, func(t *testing.T) {
			none, large := newService(t), newService(t)
			none.config.States = &statesConfig{Counter: changes, Points: true}
			large.config.States = &statesConfig{Counter: changes, Points: true, Large: size, Written: changes != ""}
			var pauses, largePauses []time.Duration
			var memory, largeMemory []int64
			for _, s := range []*service{none, large} {
				s.config.Quiet, s.config.Ready, s.config.Probation = true, 300_000, 20
				s.start()
			}
			const upgrades = 30
			for i := range upgrades {
				if i == upgrades/2 { // what is there in probation is weighed once
					memory, largeMemory = none.upgradeAndWeigh(), large.upgradeAndWeigh()
					continue
				}
				services := []*service{none, large}
				if i%2 == 1 {
					slices.Reverse(services)
				}
				for _, s := range services {
					s.config.Probation = 20
					if i == upgrades/2-1 {
						s.config.Probation = 1000 + int(gib*3000) // the next one is weighed
					}
					old := s.pidfile()
					if !s.upgrade() {
						t.Fatal("upgrade failed")
					}
					s.gone(old) // nothing of it disturbs the next one
				}
				pauses, largePauses = append(pauses, none.pause()), append(largePauses, large.pause())
			}
			large.wantLargeState(wantSum(size)) // as the first has made it
			pause, largePause := median(pauses), median(largePauses)
			ratio := float64(largePause) / float64(pause)
			t.Logf("%v GiB: from ready to serving %v, with none %v: %.2f times (medians of %d)", gib, largePause, pause, ratio, len(pauses))
			if ratio > 4 { // it is 1 but for the noise of a busy machine
				t.Errorf("the pause grows with the state: %v with none, %v with %v GiB", pauses, largePauses, gib)
			}
			more := largeMemory[0] - memory[0]
			t.Logf("memory of both processes in probation, shared pages once: %d MiB more than without a state, of them %d in files in memory; the state has %d",
				more>>20, largeMemory[1]>>20, size>>20)
			if more > size+size/4 || largeMemory[1] < size {
				t.Errorf("%d bytes more for a state of %d", more, size)
			}
		})
	}
}

// wantSum is the checksum of the large state.
func wantSum(size int64) int {
	h := crc32.New(castagnoli)
	_, _ = blocks(size).WriteTo(h)
	return int(h.Sum32())
}

func (s *service) wantLargeState(sum int) {
	s.t.Helper()
	if _, got := s.ask("read"); got != sum {
		s.t.Errorf("the checksum of the large state is %08x, want %08x", got, sum)
	}
}

// pause is how long the last upgrade took from ready to serving, as the old
// process saw it.
func (s *service) pause() time.Duration {
	s.t.Helper()
	var ready, served time.Time
	old := 0
	for _, r := range slices.Backward(s.all()) {
		if r.str("msg") != "point" || old != 0 && r.num("pid") != old {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, r.str("at"))
		if err != nil {
			s.t.Fatal(err)
		}
		switch point := r.str("point"); {
		case point == "confirm" && old == 0:
			old = r.num("pid")
		case point == "serving" && old != 0 && served.IsZero():
			served = at
		case point == "ready" && !served.IsZero():
			ready = at
		case point == "deltas" && !served.IsZero():
			return served.Sub(at) // that comes before
		case point == "hello" && !served.IsZero():
			return served.Sub(ready)
		}
	}
	s.t.Fatal("no upgrade in the log")
	return 0
}

// upgradeAndWeigh returns the memory of both processes during probation, shared
// pages once, and how much of it is in files in memory.
func (s *service) upgradeAndWeigh() []int64 {
	s.t.Helper()
	old, from := s.pidfile(), s.mark()
	s.signal(old, syscall.SIGUSR1)
	next := s.waitAfter(from, "probation", moved(0, "on probation")).num("pid")
	s.waitAfter(from, "probation", moved(old, "probation"))
	// An Accept that was starting when the gate closed may take one more.
	for pid := 0; pid != next; { // it has touched all of it
		if pid, _ = s.ask("read"); s.pidfile() != next {
			s.t.Fatalf("process %d answers and %d serves, want %d", pid, s.pidfile(), next)
		}
	}
	files := map[uint64]int64{}
	var all, inFiles int64
	for _, pid := range []int{old, next} {
		all += s.unsharedMemory(pid)
		maps.Copy(files, memories(s.t, pid))
	}
	for _, size := range files {
		inFiles += size
	}
	s.waitAfter(from, "verdict", moved(old, "draining"))
	s.waitAfter(from, "successor", moved(next, "serving"))
	return []int64{all + inFiles, inFiles}
}

// unsharedMemory is a process's share of what it maps (PSS), without files in
// memory, which are counted by themselves.
func (s *service) unsharedMemory(pid int) int64 {
	s.t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	kib := map[string]int64{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) == 3 {
			kib[fields[0]], _ = strconv.ParseInt(fields[1], 10, 64)
		}
	}
	if kib["Pss:"] == 0 {
		s.t.Fatal("no Pss in smaps_rollup")
	}
	return (kib["Pss:"] - kib["Pss_Shmem:"]) << 10
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}
