//go:build unix

package upgradertest

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/client/fake"
	"github.com/go-handover/handover/internal/wire"
	"github.com/go-handover/handover/upgrader"
)

// state is a Status of a process with this pid.
func state(pid int, state string, last *upgrader.Verdict) upgrader.Status {
	return upgrader.Status{Processes: []upgrader.Process{{PID: pid, Self: true, State: state}}, Last: last}
}

func verdict(result upgrader.Result) *upgrader.Verdict {
	return &upgrader.Verdict{Result: result, Ended: time.Now()}
}

// Who asks for an upgrade may have the answer before the new process has heard
// that it is confirmed, and would refuse the next one.
func TestUpgradeReturnsWhenTheNextOneIsPossible(t *testing.T) {
	t.Parallel()
	var seen []string
	t.Cleanup(func() { // after the fake's, which has returned then
		if want := []string{"on probation", "serving", "closed"}; !slices.Equal(seen, want) {
			t.Errorf("seen: %q, want %q", seen, want)
		}
	})
	s := fake.Listen(t, map[string]func(*fake.Conn){
		wire.VerbStatus: func(c *fake.Conn) { c.Answer(wire.ResultDone, "", state(1, "serving", nil)) },
		wire.VerbUpgrade: func(c *fake.Conn) {
			c.Event(upgrader.Event{Kind: upgrader.EventPhase, Phase: upgrader.PhaseProbation, Successor: 2})
			c.Answer(wire.ResultDone, "", state(1, "draining", verdict(upgrader.Upgraded)))
		},
		wire.VerbWatch: func(c *fake.Conn) {
			seen = append(seen, "on probation")
			c.Status(state(2, "on probation", nil)) // without a verdict
			seen = append(seen, "serving")
			c.Status(state(2, "serving", verdict(upgrader.Upgraded)))
			c.UntilClosed() // it has heard enough
			seen = append(seen, "closed")
		},
	})
	successor := 0
	if err := (&control{path: s.Path}).upgrade(t.Context(), func(pid int) { successor = pid }); err != nil || successor != 2 {
		t.Errorf("error %v, successor %d", err, successor)
	}
}

// The process that was asked dies. Whoever serves then has the verdict.
func TestVerdictOfAnotherProcess(t *testing.T) {
	t.Parallel()
	before := verdict(upgrader.Failed) // of an earlier upgrade
	for name, tt := range map[string]struct {
		last   *upgrader.Verdict
		result upgrader.Result // of the error
		text   string          // of another error
	}{
		"upgraded":    {last: &upgrader.Verdict{Result: upgrader.Upgraded, Ended: before.Ended.Add(1)}},
		"rolled back": {last: &upgrader.Verdict{Result: upgrader.RolledBack, Ended: before.Ended.Add(1)}, result: upgrader.RolledBack},
		"none":        {last: before, text: "knows of no upgrade"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := fake.Listen(t, map[string]func(*fake.Conn){
				wire.VerbStatus:  func(c *fake.Conn) { c.Answer(wire.ResultDone, "", state(1, "serving", before)) },
				wire.VerbUpgrade: func(*fake.Conn) {}, // it closes
				wire.VerbWatch:   func(c *fake.Conn) { c.Status(state(2, "serving", tt.last)) },
			})
			err := (&control{path: s.Path}).upgrade(t.Context(), nil)
			failed := (*VerdictError)(nil)
			switch {
			case tt.text != "":
				if err == nil || errors.As(err, &failed) || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("error %v, want one with %q", err, tt.text)
				}
			case tt.result == "":
				if err != nil {
					t.Error(err)
				}
			case !errors.As(err, &failed) || failed.Result != tt.result:
				t.Errorf("error %v, want a VerdictError: %s", err, tt.result)
			}
		})
	}
}

func TestAnswerThatIsNoVerdict(t *testing.T) {
	t.Parallel()
	s := fake.Listen(t, map[string]func(*fake.Conn){
		wire.VerbStatus:  func(c *fake.Conn) { c.Answer(wire.ResultDone, "", state(1, "serving", nil)) },
		wire.VerbUpgrade: func(c *fake.Conn) { c.Answer(wire.ResultBusy, "an upgrade is under way", state(1, "upgrading", nil)) },
	})
	err := (&control{path: s.Path}).upgrade(t.Context(), nil)
	if err == nil || errors.As(err, new(*VerdictError)) || !strings.Contains(err.Error(), "busy: an upgrade is under way") {
		t.Errorf("error %v, want that it is busy", err)
	}
}

func TestVerdictErrorSaysWhatIsKnown(t *testing.T) {
	t.Parallel()
	for want, v := range map[string]upgrader.Verdict{
		"upgradertest: failed; the server's output says why": {Result: upgrader.Failed},
		"upgradertest: rolled back (pid 7) in 20ms: it ended; in phase probation; it said: no database": {
			Result: upgrader.RolledBack, PID: 7, Phase: upgrader.PhaseProbation, Reason: "it ended", Text: "no database", Duration: 20 * time.Millisecond,
		},
	} {
		if got := (&VerdictError{v}).Error(); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}
