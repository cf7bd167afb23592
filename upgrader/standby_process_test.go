//go:build linux

package upgrader

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/go-handover/handover/internal/fd"
)

// standBy starts a standby, and returns once the process that serves knows that
// it is ready.
func (s *service) standBy() *exec.Cmd {
	s.t.Helper()
	from := s.mark()
	cmd := s.comes(s.pidfile(), envStandby+"=1")
	s.waitAfter(from, "standby", func(r record) bool {
		return r.str("msg") == "standby is ready" && r.num("standby") == cmd.Process.Pid
	})
	return cmd
}

func withStandbys(t *testing.T) *service {
	t.Helper()
	return carriedBy(t, takesOver)
}

// promoted waits until the service is this process's, confirmed.
func (s *service) promoted(from, pid int) {
	s.t.Helper()
	s.waitAfter(from, "promotion", moved(pid, "serving"))
}

func TestStandbyIsPromotedByTheTrigger(t *testing.T) {
	t.Parallel()
	s := withStandbys(t).start()
	p := s.probe()
	for generation := 2; generation <= 5; generation++ {
		old := s.pidfile()
		st, from := s.standBy(), s.mark()
		s.serves(old, generation-1)
		s.signal(old, syscall.SIGUSR1)
		s.promoted(from, st.Process.Pid)
		s.gone(old)
		s.serves(st.Process.Pid, generation)
	}
	p.check(t, 0)
}

// TestStandbysQueueInOrder: the first that came is the first to be promoted, and
// the others stand by for it.
func TestStandbysQueueInOrder(t *testing.T) {
	t.Parallel()
	s := withStandbys(t).start()
	p := s.probe()
	old := s.pidfile()
	queue := []*exec.Cmd{s.standBy(), s.standBy(), s.standBy()}
	from := s.mark()
	s.signal(old, syscall.SIGUSR1)
	s.promoted(from, queue[0].Process.Pid)
	s.gone(old)
	s.serves(queue[0].Process.Pid, 2)
	for _, st := range queue[1:] { // they come again, in whatever order
		s.waitAfter(from, "standby", func(r record) bool {
			return r.str("msg") == "standby is ready" && r.num("standby") == st.Process.Pid && r.num("pid") == queue[0].Process.Pid
		})
	}
	next := s.waitAfter(from, "standby", func(r record) bool {
		return r.str("msg") == "standby" && r.num("pid") == queue[0].Process.Pid
	}).num("standby")
	from = s.mark()
	s.signal(queue[0].Process.Pid, syscall.SIGUSR1)
	s.promoted(from, next)
	s.gone(queue[0].Process.Pid)
	s.serves(next, 3)
	p.check(t, 0)
}

// TestStandbyTakesOverFromTheDead: the process that serves dies, and exactly one
// of those that stand by serves; and so on.
func TestStandbyTakesOverFromTheDead(t *testing.T) {
	t.Parallel()
	s := withStandbys(t).start()
	p := s.probe()
	const n = 3
	left := map[int]bool{}
	for range n {
		left[s.standBy().Process.Pid] = true
	}
	for range n {
		old, from := s.pidfile(), s.mark()
		s.signal(old, syscall.SIGKILL)
		pid := s.waitAfter(from, "a standby that serves", func(r record) bool {
			return moved(0, "serving")(r) && left[r.num("pid")]
		}).num("pid")
		delete(left, pid)
		s.gone(old)
		s.serves(pid, s.generation())
		for st := range left {
			s.waitAfter(from, "standby", func(r record) bool {
				return r.str("msg") == "standby is ready" && r.num("standby") == st && r.num("pid") == pid
			})
		}
	}
	p.check(t, n)
}

// TestAllDieButOne: whoever dies at the same time, one that is left serves.
func TestAllDieButOne(t *testing.T) {
	t.Parallel()
	s := withStandbys(t).start()
	p := s.probe()
	old := s.pidfile()
	first, second, third := s.standBy(), s.standBy(), s.standBy()
	from := s.mark()
	for _, pid := range []int{old, first.Process.Pid, second.Process.Pid} {
		s.signal(pid, syscall.SIGKILL)
	}
	s.promoted(from, third.Process.Pid)
	s.serves(third.Process.Pid, s.generation()) // one of the others may have served for an instant
	p.check(t, 3)
}

// TestStandbyOutlivesUpgrades: generations come and go by SIGUSR1 while it is not
// ready yet, and it stands by for the last of them.
func TestStandbyOutlivesUpgrades(t *testing.T) {
	t.Parallel()
	s := withStandbys(t).start()
	p := s.probe()
	s.config.Faults = []fault{{99, "new", "stop"}}
	s.configure()
	from := s.mark()
	slow := s.run(envStandby+"=1", envComes+"=99 0")
	s.others.Go(func() { _ = slow.Wait() })
	s.waitAfter(from, "fault", func(r record) bool { return r.str("msg") == "fault" })
	s.carrier = inherits
	for range 3 { // the standby that is not ready is passed over
		old := s.pidfile()
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
		s.gone(old)
	}
	from = s.mark()
	s.signal(slow.Process.Pid, syscall.SIGCONT)
	s.waitAfter(from, "standby", func(r record) bool { return r.str("msg") == "standby is ready" })
	old := s.pidfile()
	s.signal(old, syscall.SIGKILL)
	s.promoted(from, slow.Process.Pid)
	s.gone(old)
	s.serves(slow.Process.Pid, 5)
	p.check(t, 1)
}

// TestStandbyThatDiesIsForgotten, also one that dies at its promotion: the old
// process serves on, and the next one is promoted.
func TestStandbyThatDiesIsForgotten(t *testing.T) {
	t.Parallel()
	s := withStandbys(t).start()
	p := s.probe()
	old := s.pidfile()
	first, second := s.standBy(), s.standBy()
	from := s.mark()
	s.signal(first.Process.Pid, syscall.SIGKILL)
	s.waitAfter(from, "its end", func(r record) bool {
		return r.str("msg") == "standby is gone" && r.num("standby") == first.Process.Pid
	})
	s.config.Faults = []fault{{2, "commit", "kill"}}
	s.configure()
	from = s.mark()
	s.signal(old, syscall.SIGUSR1)
	s.waitAfter(from, "verdict", moved(old, "serving"))
	s.serves(old, 1)
	s.config.Faults = nil
	s.configure()
	third := s.standBy()
	from = s.mark()
	s.signal(old, syscall.SIGUSR1)
	s.promoted(from, third.Process.Pid)
	s.gone(old)
	s.gone(second.Process.Pid)
	s.serves(third.Process.Pid, 2)
	p.check(t, 0)
}

// TestStandbyIsStoppedWithTheService, and alone by its own signal.
func TestStandbyIsStoppedWithTheService(t *testing.T) {
	t.Parallel()
	s := withStandbys(t).start()
	old := s.pidfile()
	first, _ := s.standBy(), s.standBy()
	s.signal(first.Process.Pid, syscall.SIGTERM)
	s.gone(first.Process.Pid)
	s.serves(old, 1)
	s.signal(old, syscall.SIGTERM)
	s.allGone()
	for _, path := range []string{s.config.PIDFile, s.config.Control} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is left behind", path)
		}
	}
}

// TestStandbyServesIfNobodyDoes: with nobody to stand by for it is the first
// process.
func TestStandbyServesIfNobodyDoes(t *testing.T) {
	t.Parallel()
	s := withStandbys(t)
	s.env = []string{envStandby + "=1"}
	s.start()
	s.serves(s.first.Process.Pid, 1)
}

// TestPromotedStandbyIsRolledBack: the old process takes the service back, and
// the standbys behind it are still its own.
func TestPromotedStandbyIsRolledBack(t *testing.T) {
	t.Parallel()
	s := withStandbys(t)
	s.config.Probation = longProbation
	s.start()
	p := s.probe()
	old := s.pidfile()
	first, second := s.standBy(), s.standBy()
	from := s.mark()
	s.signal(old, syscall.SIGUSR1)
	s.waitAfter(from, "probation", moved(old, "probation"))
	s.signal(first.Process.Pid, syscall.SIGKILL)
	s.waitAfter(from, "roll-back", moved(old, "serving"))
	s.gone(first.Process.Pid)
	s.serves(old, 1)
	from = s.mark()
	s.signal(old, syscall.SIGKILL)
	s.promoted(from, second.Process.Pid)
	s.gone(old)
	s.serves(second.Process.Pid, 2)
	p.check(t, 2)
}

// TestStandbyThatIsNotReadyKeepsNobody from serving, although it came first.
func TestStandbyThatIsNotReadyKeepsNobody(t *testing.T) {
	t.Parallel()
	s := withStandbys(t).start()
	old := s.pidfile()
	s.config.Faults = []fault{{2, "listen", "hang"}}
	s.configure()
	from := s.mark()
	hung := s.comes(old, envStandby+"=1")
	defer func() { _ = hung.Process.Kill() }() // nothing else ends it
	s.waitAfter(from, "fault", func(r record) bool { return r.str("msg") == "fault" })
	s.config.Faults = nil
	s.configure()
	ready := s.standBy().Process.Pid
	s.signal(old, syscall.SIGKILL)
	s.waitAfter(from, "the ready one", moved(ready, "serving"))
	s.serves(ready, 2)
}

// TestStandbyOfASuccessorOnProbation: one whose predecessor knows of no standbys
// takes them once it is confirmed. If the service is taken back before, nobody
// serves beside who has it.
func TestStandbyOfASuccessorOnProbation(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.Probation = longProbation
	s.start()
	first := s.pidfile()
	s.config.Control = filepath.Join(privateDir(t), "control")
	s.configure()
	from := s.mark()
	s.signal(first, syscall.SIGUSR1)
	second := s.waitAfter(from, "probation", moved(0, "on probation")).num("pid")
	st := s.comes(second, envStandby+"=1").Process.Pid
	s.waitAfter(from, "refusal", func(r record) bool { return r.str("msg") == "standby is to come again" && r.num("standby") == st })
	s.signal(second, syscall.SIGKILL)
	s.waitAfter(from, "roll-back", moved(first, "serving"))
	s.waitAfter(from, "the standby", func(r record) bool { return r.str("msg") == "program failed" && r.num("pid") == st })
	s.serves(first, 1)
}

// TestPIDFileOfAStandbyWhoseTurnComesEarly: two processes die, and the lock of
// the pidfile is not free yet when the turn is. It is taken a moment later.
func TestPIDFileOfAStandbyWhoseTurnComesEarly(t *testing.T) {
	t.Parallel()
	s := withStandbys(t).start()
	old, st, from := s.pidfile(), s.standBy().Process.Pid, s.mark()
	next, err := os.OpenFile(filepath.Join(filepath.Dir(s.config.PIDFile), "."+filepath.Base(s.config.PIDFile)+".next"), os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	defer next.Close()
	if locked, err := fd.TryLock(next); err != nil || !locked {
		t.Fatal(locked, err)
	}
	s.signal(old, syscall.SIGKILL)
	s.waitAfter(from, "the standby", moved(st, "serving"))
	if got := s.pidfile(); got != old {
		t.Errorf("the pidfile names %d already", got)
	}
	must(t, next.Close())
	until(t, func() bool { return s.pidfile() == st })
	s.serves(st, 2)
	if !s.upgrade() {
		t.Error("the next upgrade failed")
	}
}
