package upgrader

import (
	"fmt"
	"strings"
	"testing"
)

// legal is the diagram of state.go, arrow by arrow. It is written down a second
// time so that a change of the table is a change of two files.
var legal = []struct {
	from state
	e    event
	to   state
}{
	{starting, readyAlone, serving},
	{starting, readyWithPredecessor, waiting},
	{starting, aborted, stopped},
	{starting, stopAsked, stopped},

	{waiting, committedByPredecessor, onProbation},
	{waiting, predecessorGone, serving},
	{waiting, predecessorSilent, stopped},
	{waiting, aborted, stopped},
	{waiting, stopAsked, stopped},

	{onProbation, confirmed, serving},
	{onProbation, predecessorGone, serving},
	{onProbation, predecessorSilent, serving},
	{onProbation, rolledBack, stopped},
	{onProbation, stopAsked, stopped},

	{serving, upgradeAsked, upgrading},
	{serving, rolledBack, stopped},
	{serving, stopAsked, stopped},

	{upgrading, successorFailed, serving},
	{upgrading, successorServing, probation},
	{upgrading, stopAsked, stopped},

	{probation, successorDied, serving},
	{probation, rollbackAsked, serving},
	{probation, timeUp, draining},
	{probation, stopAsked, stopped},
}

func TestEveryMoveIsLegalOrRefused(t *testing.T) {
	type pair struct {
		s state
		e event
	}
	want := map[pair]state{}
	for _, l := range legal {
		want[pair{l.from, l.e}] = l.to
	}
	for s := range numStates {
		for e := range numEvents {
			to, err := s.next(e)
			expected, ok := want[pair{s, e}]
			switch {
			case ok && (err != nil || to != expected):
				t.Errorf("%s, %s: %s, %v; want %s", s, e, to, err, expected)
			case !ok && (err == nil || to != s):
				t.Errorf("%s, %s: %s, %v; want an error and no move", s, e, to, err)
			case !ok && !strings.Contains(err.Error(), fmt.Sprintf("%s while %s", e, s)):
				t.Errorf("%s, %s: the error %q names neither", s, e, err)
			}
		}
	}
}

func TestFinalStatesHaveNoMove(t *testing.T) {
	for s := range numStates {
		if want := s == draining || s == stopped; s.final() != want {
			t.Errorf("%s.final() = %v, want %v", s, s.final(), want)
		}
		if got := len(moves[s]) == 0; got != s.final() {
			t.Errorf("%s: without a move is %v, final is %v", s, got, s.final())
		}
	}
}

// TestEveryStateLeadsToAnEnd: no state is a trap, and each can be reached.
func TestEveryStateLeadsToAnEnd(t *testing.T) {
	reached := map[state]bool{starting: true}
	for range numStates {
		for _, l := range legal {
			if reached[l.from] {
				reached[l.to] = true
			}
		}
	}
	for s := range numStates {
		if !reached[s] {
			t.Errorf("nothing leads to %s", s)
		}
		if s.final() {
			continue
		}
		if to, err := s.next(stopAsked); err != nil || to != stopped {
			t.Errorf("Stop while %s: %s, %v; want stopped", s, to, err)
		}
	}
}

func TestEveryEventMovesSomething(t *testing.T) {
	for e := range numEvents {
		moves := 0
		for s := range numStates {
			if _, err := s.next(e); err == nil {
				moves++
			}
		}
		if moves == 0 {
			t.Errorf("%s moves no state", e)
		}
	}
}

// TestAtMostOneIsCommitted in each pair of states in which a predecessor and
// its successor rest: from commit until the answer to it, one of them is about
// to move.
func TestAtMostOneIsCommitted(t *testing.T) {
	want := map[state]bool{serving: true, upgrading: true, onProbation: true}
	for s := range numStates {
		if s.committed() != want[s] {
			t.Errorf("%s.committed() = %v, want %v", s, s.committed(), want[s])
		}
	}
	rest := []struct{ predecessor, successor state }{
		{upgrading, starting},
		{upgrading, waiting},
		{probation, onProbation},
		{draining, onProbation}, // confirm is on its way
		{draining, serving},
		{serving, stopped}, // rolled back
		{stopped, stopped},
	}
	for _, p := range rest {
		if p.predecessor.committed() && p.successor.committed() {
			t.Errorf("predecessor %s and successor %s are both committed", p.predecessor, p.successor)
		}
	}
}

func TestRefusal(t *testing.T) {
	want := map[state]error{
		starting:    ErrNotReady,
		waiting:     ErrNotReady,
		onProbation: ErrBusy,
		serving:     nil,
		upgrading:   ErrBusy,
		probation:   ErrBusy,
		draining:    ErrUpgraded,
		stopped:     ErrStopped,
	}
	for s := range numStates {
		if got := s.refusal(); got != want[s] { //nolint:errorlint // the sentinel itself
			t.Errorf("%s.refusal() = %v, want %v", s, got, want[s])
		}
		if _, err := s.next(upgradeAsked); (err == nil) != (s.refusal() == nil) {
			t.Errorf("%s: the table and refusal disagree on an upgrade", s)
		}
	}
}

// TestNamesOfStatesAndEvents: the log, and those who read it, depend on them.
func TestNamesOfStatesAndEvents(t *testing.T) {
	states := map[state]string{
		starting: "starting", waiting: "waiting", onProbation: "on probation", serving: "serving",
		upgrading: "upgrading", probation: "probation", draining: "draining", stopped: "stopped",
	}
	for s := range numStates {
		if s.String() != states[s] {
			t.Errorf("state %d is called %q, want %q", s, s, states[s])
		}
	}
	events := map[event]string{
		readyAlone: "ready alone", readyWithPredecessor: "ready", committedByPredecessor: "committed",
		confirmed: "confirmed", predecessorGone: "predecessor gone", predecessorSilent: "predecessor silent",
		aborted: "aborted", rolledBack: "rolled back", upgradeAsked: "upgrade asked", successorFailed: "successor failed",
		successorServing: "successor serving", successorDied: "successor died", rollbackAsked: "rollback asked",
		timeUp: "probation over", stopAsked: "stop asked",
	}
	for e := range numEvents {
		if e.String() != events[e] {
			t.Errorf("event %d is called %q, want %q", e, e, events[e])
		}
	}
}
