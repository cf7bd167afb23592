//go:build linux

package upgrader

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
)

// rounds is how often the soak tests go round: `make soak` says 1,000.
func rounds(t *testing.T) int {
	t.Helper()
	s := os.Getenv("HANDOVER_SOAK")
	if s == "" {
		return 25
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("HANDOVER_SOAK=%q: want a number of rounds", s)
	}
	return n
}

// usage is what a process holds.
type usage struct{ fds, goroutines, children, kib int }

func (s *service) usage(pid int) usage {
	s.t.Helper()
	var u usage
	c, err := net.Dial("tcp", s.addr("main"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	if got, n := s.askOn(c, "goroutines"); got == pid {
		u.goroutines = n
	} else {
		s.t.Fatalf("process %d answers, want %d", got, pid)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		s.t.Fatal(err)
	}
	u.fds = len(fds)
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		s.t.Fatal(err)
	}
	u.children = len(strings.Fields(string(children)))
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			u.kib, _ = strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		}
	}
	return u
}

// noMore asserts that a process holds no more than another one did, or than it
// did before, once it has noticed the end of the process before it.
func (s *service) noMore(pid int, then usage, slack int) {
	s.t.Helper()
	var now usage
	defer func() { s.t.Logf("then %+v, now %+v", then, now) }()
	s.eventually(fmt.Sprintf("process %d holds no more than %+v", pid, then), func() bool {
		now = s.usage(pid)
		return now.fds <= then.fds && now.goroutines <= then.goroutines && now.children == 0 && now.kib <= then.kib+slack
	})
}

// settled is the round from which on the heap of a young Go process no longer
// grows to its least size, and the KiB by which it varies from then on. A short
// run does not get there.
func settled(n int) (round, slack int) {
	if n < 300 {
		return n / 2, 8 << 10
	}
	return n / 3, 1 << 10
}

// TestSoakUpgrades: the last of many generations holds what the second held,
// executed by its path and by its descriptor in turn.
func TestSoakUpgrades(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.Probation, s.config.Quiet = 10, true
	s.start()
	var then usage
	n := rounds(t)
	round, slack := settled(n)
	for i := range n {
		old := s.pidfile()
		s.config.Preflight = []string{"good", ""}[i%2]
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
		s.gone(old)
		if i == round {
			then = s.usage(s.pidfile())
		}
		if i%100 == 99 {
			t.Logf("%d upgrades", i+1)
		}
	}
	now := s.pidfile()
	s.noMore(now, then, slack)
	s.serves(now, n+1)
}

// TestSoakFailures: a process that was to be replaced many times, and was not,
// holds what it held, and can be replaced.
func TestSoakFailures(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.Probation, s.config.Quiet, s.config.Preflight = 1000, true, "good"
	s.start()
	pid := s.pidfile()
	points := []string{"start", "new", "ready", "commit", "serving", "missing", "preflight"}
	var then usage
	n := rounds(t)
	round, slack := settled(n)
	for i := range n {
		point := points[i%len(points)]
		s.config.Preflight = "good"
		switch point {
		case "missing":
			s.install(nil)
		case "preflight":
			s.config.Preflight = "bad"
		default:
			s.config.Faults = []fault{{2, point, "exit1"}}
		}
		if s.upgrade() {
			t.Fatal("upgraded")
		}
		if point == "missing" {
			s.install(good)
		}
		if i == round {
			then = s.usage(pid)
		}
		if i%100 == 99 {
			t.Logf("%d failures", i+1)
		}
	}
	s.noMore(pid, then, slack)
	s.config.Faults, s.config.Preflight = nil, "good"
	if !s.upgrade() {
		t.Fatal("the good upgrade failed")
	}
	s.serves(s.pidfile(), 2)
}
