//go:build linux

package managers

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/go-handover/handover/internal/proctest"
)

// supervised is the command that contrib starts, too.
var supervised = []string{"/usr/local/bin/upgradectl", "supervise", "-restart", "on-failure", "-kill-after", "620s", "--"}

// namespace is a PID namespace. It ends with its process 1, as a container does.
type namespace struct {
	s     *service
	flags string
	first []string // what process 1 is, before the command of the server
}

func TestPID1(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	live(t, func(t *testing.T, flags string) *service { return openNamespace(newHome(t), flags, supervised, "") }, unnamed)
}

// TestPID1ThatSupervisesItself: the program of the container needs no other.
func TestPID1ThatSupervisesItself(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	live(t, func(t *testing.T, flags string) *service {
		return openNamespace(newHome(t), flags, nil, "github.com/go-handover/handover/internal/managers/pid1")
	}, unnamed)
}

func openNamespace(h home, flags string, first []string, program string) *service {
	h.t.Helper()
	s := &service{home: h, program: program}
	s.install("app", s.build("v1"))
	n := namespace{s: s, flags: flags, first: first}
	s.manager, s.init = n, n.pid
	n.start()
	return s
}

// start makes a new namespace: there is nothing in the old one that could.
func (n namespace) start() {
	n.s.t.Helper()
	command := slices.Concat(n.first, []string{"/usr/local/bin/app", "-pidfile", "/run/app/app.pid"}, n.s.flags(n.flags))
	n.s.Server = n.s.home.start([]string{"--pid", "--fork", "--kill-child", "--mount-proc"}, n.flags, command...)
}

// pid is the only child of unshare.
func (n namespace) pid() (pid int) {
	n.s.t.Helper()
	first := n.s.First.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", first))
	if err != nil {
		return 0 // it has ended
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(children)))
	if err != nil {
		return 0 // it is about to
	}
	return pid
}

func (n namespace) signal(sig syscall.Signal) {
	n.s.t.Helper()
	n.s.Signal(n.pid(), sig)
}

// stop asserts that the container ends as its server does.
func (n namespace) stop() {
	n.s.t.Helper()
	n.signal(syscall.SIGTERM)
	if code := n.s.ExitCode(); code != 0 {
		n.s.t.Errorf("process 1 exits %d", code)
	}
}

func (n namespace) restart() {
	n.s.t.Helper()
	n.stop()
	n.start()
}

// TestServerThatIsPID1RefusesToUpgrade: its container would end with it.
func TestServerThatIsPID1RefusesToUpgrade(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	refusesToUpgrade(t, openNamespace(newHome(t), "", nil, ""))
}

func refusesToUpgrade(t *testing.T, s *service) {
	t.Helper()
	s.Wait(proctest.Reached(1, "serving"))
	l, end := s.under()
	s.signal(syscall.SIGUSR1)
	refused := s.Wait(proctest.Logged("upgrade refused"))
	for _, cure := range []string{"upgradectl supervise -- COMMAND", "SupervisePID1"} {
		if !strings.Contains(refused.Err, cure) {
			t.Errorf("%q does not name the cure %q", refused.Err, cure)
		}
	}
	ended, _ := l.Counts()
	until(t, "the server answers on", func() bool { n, _ := l.Counts(); return n > ended+100 })
	if r := end(); len(r.Processes) != 1 || s.PID() != 1 {
		t.Errorf("process %d is the server now\n%s", s.PID(), r)
	}
	s.stop()
}
