//go:build linux

package managers

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
)

// runit is runsv with contrib/runit/run.
type runit struct {
	t   *testing.T
	dir string
}

func TestRunit(t *testing.T) {
	t.Parallel()
	installed(t, "runit", "runsv", "sv")
	live(t, func(t *testing.T, flags string) *service { return openRunit(newHome(t), flags) }, unnamed)
}

func openRunit(h home, flags string) *service {
	h.t.Helper()
	dir := filepath.Dir(h.contrib("runit/run"))
	return &service{Server: h.start(nil, flags, "runsv", dir), home: h, manager: runit{h.t, dir}}
}

func (r runit) sv(args ...string) string {
	r.t.Helper()
	return run(r.t, "sv", append(append([]string{"-w", "30"}, args...), r.dir)...)
}

func (r runit) pid() (pid int) {
	r.t.Helper()
	said := run(r.t, "sv", "status", r.dir) // run: DIR: (pid N) 5s
	if _, after, found := strings.Cut(said, "(pid "); found && strings.HasPrefix(said, "run:") {
		_, _ = fmt.Sscanf(after, "%d", &pid) // 0 is the answer then
	}
	return pid
}

func (r runit) signal(sig syscall.Signal) {
	r.t.Helper()
	r.sv(map[syscall.Signal]string{syscall.SIGUSR1: "1", syscall.SIGTERM: "term"}[sig])
}

func (r runit) stop() {
	r.t.Helper()
	r.sv("down")
}

func (r runit) start() {
	r.t.Helper()
	r.sv("up")
}

func (r runit) restart() {
	r.t.Helper()
	r.sv("restart")
}

// TestSupervisorIsKilled: its server stops politely, and runsv starts a supervisor
// that starts another one.
func TestSupervisorIsKilled(t *testing.T) {
	t.Parallel()
	installed(t, "runit", "runsv", "sv")
	for _, upgrades := range []int{0, 1} {
		t.Run(fmt.Sprint("after upgrades: ", upgrades), func(t *testing.T) {
			t.Parallel()
			s := openRunit(newHome(t), "-probation 100ms")
			s.Wait(proctest.Reached(1, "serving"))
			for range upgrades {
				s.upgraded()
			}
			old, supervisor := s.PID(), s.pid()
			answered := s.slow(3 * time.Second)
			now := s.Now()
			s.Signal(supervisor, syscall.SIGKILL)
			s.After(now, proctest.Changed(old, "stopped"))
			s.After(now, proctest.Reached(1, "serving"))
			answered()
			s.answers()
			if s.pid() == supervisor || s.PID() == old {
				t.Errorf("supervisor %d and server %d are still there", s.pid(), s.PID())
			}
			s.upgraded()
			s.stop()
			until(t, "the old one has ended", func() bool { return !slices.Contains(s.running(), old) })
			s.alone()
		})
	}
}
