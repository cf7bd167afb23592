//go:build linux

package upgrader

import (
	"os"
	"strconv"
	"testing"
)

// A trigger for every process of the service reaches one that has only just been
// executed, and ends it: that is no reason to fail.
func TestSuccessorThatIsHitByTheTriggerIsStartedAgain(t *testing.T) {
	for _, test := range []struct {
		name, action string
		sibling      bool
		again        int
		upgraded     bool
	}{
		{"a child, once", "usr1 once", false, 1, true},
		{"a child, always", "usr1", false, maxRestarts, false},
		{"a child that exits", "exit1", false, 0, false},
		{"a child that is killed", "kill", false, 0, false},
		{"a sibling, once", "usr1 once", true, 1, true},
		{"a sibling, always", "usr1", true, maxRestarts, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newService(t)
			if test.sibling {
				s.env = append(s.env, envSupervisor+"="+strconv.Itoa(os.Getpid()))
			}
			s.config.Faults = []fault{{2, "start", test.action}}
			s.start()
			old := s.pidfile()
			if got := s.upgrade(); got != test.upgraded {
				t.Errorf("upgraded: %v, want %v", got, test.upgraded)
			}
			again := 0
			for _, r := range s.all() {
				if r.str("msg") == "successor started again" {
					again++
				}
			}
			if again != test.again {
				t.Errorf("started again %d times, want %d", again, test.again)
			}
			if test.upgraded {
				return
			}
			if pid, _ := s.ask("hello"); pid != old || s.pidfile() != old {
				t.Errorf("process %d answers, the pidfile names %d, want %d", pid, s.pidfile(), old)
			}
			s.config.Faults = nil
			if !s.upgrade() {
				t.Error("the next upgrade failed")
			}
		})
	}
}
