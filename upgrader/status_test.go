//go:build unix

package upgrader

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-handover/handover/internal/wire"
)

// states are those of the generations in a status, the newest first.
func (s Status) states() string {
	var all []string
	for _, p := range s.Processes {
		state := p.State
		if p.Self {
			state += " (self)"
		}
		all = append(all, state)
	}
	return strings.Join(all, ", ")
}

func (p *process) wantStates(want string) {
	p.t.Helper()
	synctest.Wait()
	if got := p.Status().states(); got != want {
		p.t.Errorf("processes: %s; want %s", got, want)
	}
}

// What the predecessor of an upgrade says of it, from its begin to its end.
func TestStatusOfThePredecessor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{Version: "v1"})
		p.wantStates("serving (self)")
		a, s := p.upgrade(PhaseHello)
		p.wantStates("hello, upgrading (self)")
		s.say(s.hello())
		p.wantStates("ready, upgrading (self)")
		s.say(wire.Ready{}, wire.Serving{})
		p.wantStates("on probation, probation (self)")
		st := p.Status()
		if n := st.Processes[0]; n.Generation != 2 || n.PID != s.pid || n.Version != "test" {
			t.Errorf("%+v", n)
		}
		if o := st.Processes[1]; o.Generation != 1 || o.PID != os.Getpid() || o.Version != "v1" || o.Connections != nil {
			t.Errorf("%+v", o)
		}
		time.Sleep(DefaultProbation + secondLook)
		a.want(nil)
		p.wantStates("serving, draining (self)")
		st = p.Status()
		if d := st.Processes[1]; !d.Deadline.Equal(d.Since.Add(DefaultDrainTimeout)) {
			t.Errorf("%+v", d)
		}
		if st.Counters != (Counters{Upgrades: 1}) || st.Last == nil || st.Last.Result != Upgraded || st.Last.PID != s.pid ||
			st.Last.Duration != DefaultProbation+secondLook {
			t.Errorf("%+v, last %+v", st, st.Last)
		}
		s.exit()
		p.wantStates("draining (self)") // the loop has ended
	})
}

// The same, from the successor; counters go on, and the predecessor reports.
func TestStatusOfTheSuccessor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := manifest
		m.Build, m.Counters = "v1 abc", wire.Counters{Upgrades: 4, Failures: 2, Rollbacks: 1}
		p := newSuccessor(t, 7, Options{}, m)
		p.r.counters = m.Counters // inherit does this
		p.wantStates("starting (self), upgrading")
		p.bring(onProbation)
		p.wantStates("on probation (self), probation")
		p.predecessor.say(wire.Confirm{Elapsed: 3 * time.Second})
		must(t, p.old.confirm())
		p.wantStates("serving (self), draining")
		st := p.Status()
		if st.Counters != (Counters{Upgrades: 5, Failures: 2, Rollbacks: 1}) || st.Last.Result != Upgraded || st.Last.Duration != 3*time.Second {
			t.Errorf("%+v, last %+v", st, st.Last)
		}
		if o := st.Processes[1]; o.Generation != 6 || o.Version != "v1" || o.Revision != "abc" {
			t.Errorf("%+v", o)
		}
		conns := 12
		p.predecessor.say(wire.Draining{Processes: []wire.Process{
			{Generation: 6, PID: 60, State: "draining", Connections: &conns}, {Generation: 5, PID: 50, State: "draining"},
		}})
		p.wantStates("serving (self), draining, draining")
		if o := p.Status().Processes[1]; o.PID != 60 || *o.Connections != 12 {
			t.Errorf("%+v", o)
		}
		p.predecessorDies()
		p.wantStates("serving (self)")
	})
}

// A draining process tells its successor who drains, at once and each second.
func TestDrainIsReported(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		var open atomic.Int64
		open.Store(3)
		p.CountConnections(func() int { return int(open.Load()) })
		a, s := p.upgrade(PhaseProbation)
		time.Sleep(DefaultProbation + secondLook)
		a.want(nil)
		for range 3 {
			synctest.Wait()
			d := wantHears[wire.Draining](s.farEnd)
			if len(d.Processes) != 1 || d.Processes[0].State != "draining" || *d.Processes[0].Connections != int(open.Load()) {
				t.Errorf("%+v", d)
			}
			open.Add(-1)
			time.Sleep(drainReport)
		}
	})
}

func TestVerdictsAreCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		want := func(c Counters, r Result, phase Phase, text string) {
			t.Helper()
			synctest.Wait()
			st := p.Status()
			if st.Counters != c || st.Last.Result != r || st.Last.Phase != phase || !strings.Contains(st.Last.String(), text) {
				t.Errorf("%+v, %v; want %+v, %v in %v: %q", st.Counters, st.Last, c, r, phase, text)
			}
		}
		if p.Status().Last != nil {
			t.Error("there was no upgrade yet")
		}
		p.launchError = errors.New("no room")
		p.ask().wantFailed(PhaseStart)
		want(Counters{Failures: 1}, Failed, PhaseStart, "no room")
		p.launchError = nil

		a, s := p.upgrade(PhaseReady)
		s.say(wire.Progress{Text: "warming up"})
		s.exit()
		a.wantFailed(PhaseReady)
		want(Counters{Failures: 2}, Failed, PhaseReady, "it ended")
		if got := p.Status().Last.Text; got != "warming up" {
			t.Errorf("its last words: %q", got)
		}

		a, s = p.upgrade(PhaseProbation)
		s.exit()
		a.wantFailed(PhaseProbation)
		want(Counters{Failures: 2, Rollbacks: 1}, RolledBack, PhaseProbation, "it ended")

		p.wantNextUpgradeWorks()
		want(Counters{Failures: 2, Rollbacks: 1, Upgrades: 1}, Upgraded, "", "upgraded")
	})
}

// A stop is no verdict.
func TestStopIsNoFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		p.upgrade(PhaseReady)
		p.Stop()
		if st := p.Status(); st.Counters != (Counters{}) || st.Last != nil {
			t.Errorf("%+v", st)
		}
	})
}

// ---- events ----

func TestEventsOfAnUpgrade(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var got []string
		p := newServing(t, Options{})
		f := p.bus.follow()
		a, s := p.upgrade(PhaseReady)
		s.say(wire.Progress{Text: "half"}, wire.Ready{}, wire.Serving{})
		time.Sleep(DefaultProbation + secondLook)
		a.want(nil)
		s.exit()
		for e := range f.events { // ends with the loop
			text := string(e.Kind) + " " + e.From + e.Text + string(e.Phase)
			if e.Verdict != nil {
				text += string(e.Verdict.Result)
			}
			got = append(got, text+e.To)
			if e.PID != os.Getpid() || e.Generation != 1 || e.Time.IsZero() {
				t.Errorf("%+v", e)
			}
		}
		want := []string{
			"state servingupgrading", "phase prepare", "phase hello", "phase ready", "progress halfready", "phase commit",
			"state upgradingprobation", "phase probation", "verdict upgraded", "state probationdraining",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}

// OnEvent is told everything in order, from one goroutine, which ends.
func TestOnEventIsTold(t *testing.T) {
	told := make(chan Event, followerRoom)
	u, err := New(Options{OnEvent: func(e Event) { told <- e }})
	must(t, err)
	must(t, u.Ready())
	u.Stop()
	for _, want := range []string{"serving", "stopped"} {
		select {
		case e := <-told:
			if e.Kind != EventState || e.To != want {
				t.Errorf("%+v, want %s", e, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("not told of %s", want)
		}
	}
}

// Who does not keep up holds nobody up, and hears no more.
func TestSlowFollowerIsLeftBehind(t *testing.T) {
	var b bus
	slow, quick := b.follow(), b.follow()
	for range followerRoom + 1 {
		b.publish(Event{})
		<-quick.events
	}
	n := 0
	for range slow.events {
		n++
	}
	if n != followerRoom {
		t.Errorf("%d events, want %d", n, followerRoom)
	}
	b.leave(slow) // again
	b.close()
	if _, ok := <-quick.events; ok {
		t.Error("an event after the end")
	}
	if _, ok := <-b.follow().events; ok {
		t.Error("an event for who comes after the end")
	}
}

// ---- orders ----

func (p *process) order(o order) <-chan error {
	result := make(chan error, 1)
	go func() { result <- p.Upgrader.ask(o) }()
	synctest.Wait()
	return result
}

func answered(t *testing.T, c <-chan error, want error) {
	t.Helper()
	select {
	case err := <-c:
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	default:
		t.Error("no answer")
	}
}

func TestOrdersEndProbation(t *testing.T) {
	t.Run("confirm, asked of the predecessor", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newServing(t, Options{})
			a, s := p.upgrade(PhaseProbation)
			answered(t, p.order(order{}), nil)
			a.want(nil)
			wantHears[wire.Confirm](s.farEnd)
			p.wantEnd(draining, ErrUpgraded)
		})
	})
	t.Run("roll back, asked of the predecessor", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newServing(t, Options{})
			a, s := p.upgrade(PhaseProbation)
			answered(t, p.order(order{rollBack: true}), nil)
			p.wantState(serving)
			if got := wantHears[wire.Abort](s.farEnd).Reason; got != errOperator.Error() {
				t.Errorf("the successor is told %q", got)
			}
			s.say(wire.Stopping{})
			s.exit()
			a.wantFailed(PhaseProbation)
		})
	})
	t.Run("roll back, before the successor is ready", func(t *testing.T) {
		for _, phase := range []Phase{PhaseHello, PhaseReady} {
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{})
				a, s := p.upgrade(phase)
				answered(t, p.order(order{}), errNoProbation)
				answered(t, p.order(order{rollBack: true}), nil)
				answered(t, p.order(order{rollBack: true}), errNoProbation) // any more
				if got := wantHears[wire.Abort](s.farEnd).Reason; got != errOperator.Error() {
					t.Errorf("the successor is told %q", got)
				}
				p.wantOpen(true)
				s.exit()
				a.wantFailed(phase)
				if !errors.Is(a.err, errOperator) {
					t.Errorf("%v, want %v", a.err, errOperator)
				}
				p.wantNextUpgradeWorks()
			})
		}
	})
	t.Run("roll back, before the successor is started", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newServing(t, Options{})
			start := make(chan struct{})
			p.onLaunch = func(context.Context) { <-start }
			a := p.ask()
			answered(t, p.order(order{rollBack: true}), nil)
			close(start)
			synctest.Wait()
			wantHears[wire.Abort](p.children[0].farEnd)
			p.children[0].exit()
			a.wantFailed(PhaseHello)
			p.onLaunch = nil
			p.wantNextUpgradeWorks()
		})
	})
	t.Run("confirm, asked of the successor", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			p.bring(onProbation)
			first, second := p.order(order{}), p.order(order{})
			wantHears[wire.Confirm](p.predecessor)
			if len(first)+len(second) > 0 {
				t.Error("answered before the predecessor has")
			}
			p.confirm()
			answered(t, first, nil)
			answered(t, second, nil)
			p.wantState(serving)
		})
	})
	t.Run("roll back, asked of the successor", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			p.bring(onProbation)
			answered(t, p.order(order{rollBack: true}), nil)
			if got := wantHears[wire.Failed](p.predecessor).Text; got != errOperator.Error() {
				t.Errorf("the predecessor is told %q", got)
			}
			p.wantEnd(stopped, ErrStopped)
		})
	})
	t.Run("confirm, and the successor dies", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newServing(t, Options{})
			a, s := p.upgrade(PhaseProbation)
			s.die() // and nobody has noticed
			if err := <-p.order(order{}); err == nil {
				t.Error("confirmed")
			}
			a.wantFailed(PhaseProbation)
		})
	})
	t.Run("asked at commit", func(t *testing.T) {
		for _, o := range []order{{}, {rollBack: true}} {
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{})
				a, s := p.upgrade(PhaseCommit)
				result := p.order(o)
				if len(result) > 0 {
					t.Error("answered before the successor has")
				}
				s.say(wire.Serving{})
				answered(t, result, nil)
				if o.rollBack {
					s.say(wire.Stopping{})
					s.exit()
					a.wantFailed(PhaseProbation)
					return
				}
				a.want(nil)
			})
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{})
				a, s := p.upgrade(PhaseCommit)
				result := p.order(o)
				s.exit()
				a.wantFailed(PhaseCommit)
				answered(t, result, errNoProbation)
			})
		}
	})
	t.Run("at rest", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newServing(t, Options{})
			for _, o := range []order{{}, {rollBack: true}} {
				answered(t, p.order(o), errNoProbation)
			}
			p.Stop()
			for _, o := range []order{{}, {rollBack: true}} {
				answered(t, p.order(o), ErrStopped)
			}
		})
	})
}

// ---- JSON ----

// The JSON of a status is read by other programs: see docs/operations.md.
func TestJSONOfAStatus(t *testing.T) {
	at := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	n := 3
	st := Status{
		Processes: []Process{
			{Generation: 2, PID: 4712, Self: true, Version: "v1.3.0", Revision: "0a1b2c3", State: "serving", Since: at, Connections: &n},
			{Generation: 1, PID: 4711, Version: "v1.2.3", State: "draining", Since: at, Connections: &n, Deadline: at.Add(10 * time.Minute)},
		},
		Sockets: []Socket{{Name: "http", Kind: "listener", Network: "tcp", Address: "[::]:8080"}},
		Last: &Verdict{
			Result: RolledBack, PID: 4713, Phase: PhaseProbation, Reason: "it ended", Text: "panic: no database",
			Ended: at.Add(time.Hour), Duration: 1500 * time.Millisecond,
		},
		Counters: Counters{Upgrades: 1, Failures: 2, Rollbacks: 3, Killed: 4},
		Log:      "/var/log/app.log",
	}
	got, err := json.MarshalIndent(st, "", "  ")
	must(t, err)
	want, err := os.ReadFile("testdata/status.json")
	must(t, err)
	if string(got)+"\n" != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	var back Status
	must(t, json.Unmarshal(want, &back))
	if again, _ := json.MarshalIndent(back, "", "  "); string(again) != string(got) {
		t.Errorf("decoded and encoded again it is\n%s", again)
	}
}

func TestVarIsTheStatus(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		var st Status
		must(t, json.Unmarshal([]byte(p.Var().String()), &st))
		if st.states() != "serving (self)" {
			t.Errorf("%+v", st)
		}
	})
}
