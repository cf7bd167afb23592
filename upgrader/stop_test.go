//go:build unix

package upgrader

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-handover/handover/internal/wire"
)

// ---- Stop, in every state of a process without a predecessor ----

func TestStopWhileStarting(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newFirst(t, Options{})
		p.Stop()
		p.wantEnd(stopped, ErrStopped)
		wantFiles(t, p.path)
	})
}

func TestStopWhileServing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		p.Stop()
		p.wantEnd(stopped, ErrStopped)
		wantFiles(t, p.path)
		if p.isHurried() {
			t.Error("hurried by the first Stop")
		}
		p.Stop()
		if !p.isHurried() {
			t.Error("not hurried by the second Stop")
		}
	})
}

// TestStopEndsTheAttempt in every phase before commit: the successor first, the
// service after it.
func TestStopEndsTheAttempt(t *testing.T) {
	for _, phase := range []Phase{PhaseHello, PhaseReady, PhaseCommit} {
		for _, obeys := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, obeys %v", phase, obeys), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := newServing(t, Options{})
					a, s := p.upgrade(phase)
					want := stopTimeout
					s.watch(func(m wire.Message) {
						if _, ok := m.(wire.Abort); ok && obeys {
							s.die()
						}
					})
					if obeys {
						want = 0
					}
					p.Stop()
					if took := time.Since(p.begun); took != want {
						t.Errorf("Stop took %v, want %v", took, want)
					}
					p.wantEnd(stopped, ErrStopped)
					a.want(ErrStopped)
					wantDoesNotHear[wire.Stopping](s.farEnd)
					wantFiles(t, p.path)
				})
			})
		}
	}
	t.Run("prepare", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newServing(t, Options{})
			p.onLaunch = func(ctx context.Context) { <-ctx.Done(); time.Sleep(time.Millisecond) }
			a := p.ask()
			p.Stop()
			a.want(ErrStopped)
			p.wantEnd(stopped, ErrStopped)
			wantFiles(t, p.path)
			if !p.children[0].isDead() {
				t.Error("the successor that was just started still runs")
			}
		})
	})
}

func TestStopOfAnImmortalSuccessorHasALimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		_, s := p.upgrade(PhaseReady)
		s.immortal.Store(true)
		p.Stop()
		if took := time.Since(p.begun); took != stopTimeout+killTimeout {
			t.Errorf("Stop took %v", took)
		}
	})
}

// TestStopWhileTheAttemptFails: the successor is ending already.
func TestStopWhileTheAttemptFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		a, s := p.upgrade(PhaseReady)
		s.end()
		time.Sleep(time.Second)
		p.Stop()
		if took := time.Since(p.begun); took != time.Second+stopTimeout {
			t.Errorf("Stop took until %v", took)
		}
		p.wantEnd(stopped, ErrStopped)
		a.want(ErrStopped)
		wantFiles(t, p.path)
	})
}

// TestStopAfterARollBackDoesNotWait for a successor that is ending.
func TestStopAfterARollBackDoesNotWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		a, s := p.upgrade(PhaseProbation)
		s.immortal.Store(true)
		s.end()
		synctest.Wait()
		p.Stop()
		if took := time.Since(p.begun); took != 0 {
			t.Errorf("Stop took %v", took)
		}
		p.wantEnd(stopped, ErrStopped)
		wantFiles(t, p.path)
		a.wantFailed(PhaseProbation)
	})
}

func TestStopDuringProbationStopsBoth(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		a, s := p.upgrade(PhaseProbation)
		time.Sleep(time.Second)
		p.Stop()
		if took := time.Since(p.begun); took != time.Second {
			t.Errorf("Stop took until %v", took)
		}
		wantHears[wire.Stopping](s.farEnd)
		wantDoesNotHear[wire.Abort](s.farEnd)
		p.wantEnd(stopped, ErrStopped)
		a.want(ErrStopped)
		p.wantOpen(false)
		wantPID(t, p.path, s.pid) // it is the successor's to remove
	})
}

func TestStopWhileDrainingHurries(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		a, s := p.upgrade(PhaseProbation)
		a.want(nil)
		p.Stop()
		if !p.isHurried() {
			t.Error("not hurried")
		}
		p.wantEnd(draining, ErrUpgraded)
		wantDoesNotHear[wire.Stopping](s.farEnd)
		wantPID(t, p.path, s.pid)
	})
}

// TestFailWithoutAPredecessorIsStop, in every state.
func TestFailWithoutAPredecessorIsStop(t *testing.T) {
	states := map[string]func(*testing.T) *process{
		"starting":  func(t *testing.T) *process { return newFirst(t, Options{}) },
		"serving":   func(t *testing.T) *process { return newServing(t, Options{}) },
		"upgrading": func(t *testing.T) *process { p := newServing(t, Options{}); p.upgrade(PhaseReady); return p },
	}
	for name, in := range states {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := in(t)
				p.Fail(errors.New("the database is gone"))
				p.wantEnd(stopped, ErrStopped)
				wantFiles(t, p.path)
			})
		})
	}
}

// TestFailDuringProbationConfirmsTheSuccessor: the service goes on there.
func TestFailDuringProbationConfirmsTheSuccessor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		a, s := p.upgrade(PhaseProbation)
		p.Fail(errors.New("the listener broke"))
		a.want(nil)
		p.wantEnd(draining, ErrUpgraded)
		wantHears[wire.Confirm](s.farEnd)
		wantPID(t, p.path, s.pid)
	})
}

// TestStopBesideADeadSuccessor, which nobody has noticed yet: this process is
// the last one, and removes the names.
func TestStopBesideADeadSuccessor(t *testing.T) {
	ends := map[string]func(*child){
		"dead":    (*child).die,
		"reaped":  func(c *child) { c.dead.Do(func() { close(c.exited) }) }, // a child of its own holds the channel
		"dying":   func(c *child) { c.end() },
		"hanging": func(c *child) { c.deafen() },
	}
	stops := map[string]func(*process){
		"Stop": (*process).Stop,
		"Fail": func(p *process) { p.Fail(errors.New("the listener broke")) },
	}
	for end, happens := range ends {
		for name, stop := range stops {
			t.Run(end+", "+name, func(t *testing.T) {
				bubbles(t, func(t *testing.T) {
					p := newServing(t, Options{})
					_, s := p.upgrade(PhaseProbation)
					happens(s)
					stop(p)
					p.wantEnd(stopped, ErrStopped)
					wantDoesNotHear[wire.Confirm](s.farEnd)
					wantFiles(t, p.path)
					time.Sleep(time.Minute)
					if !s.isDead() {
						t.Error("the successor lives on")
					}
				})
			})
		}
	}
}

// TestSuccessorStopsTheService: a deliberate stop of the successor says so, and
// is no reason to serve on.
func TestSuccessorStopsTheService(t *testing.T) {
	for _, phase := range []Phase{PhaseHello, PhaseReady, PhaseCommit, PhaseProbation} {
		t.Run(string(phase), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{})
				a, s := p.upgrade(phase)
				s.say(wire.Stopping{})
				s.end()
				s.exit()
				a.want(ErrStopped)
				if a.after != 0 {
					t.Errorf("it took %v", a.after)
				}
				p.wantEnd(stopped, ErrStopped)
				if phase != PhaseProbation {
					wantFiles(t, p.path)
				}
			})
		})
	}
}

// TestAcknowledgedAbortIsNoStop: a successor that was committed, and whose
// answer came too late, acknowledges the abort. The service goes on.
func TestAcknowledgedAbortIsNoStop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		a, s := p.upgrade(PhaseCommit)
		s.watch(func(m wire.Message) {
			if _, ok := m.(wire.Abort); ok {
				s.said <- wire.Serving{}
				s.said <- wire.Stopping{}
			}
		})
		a.wantFailed(PhaseCommit)
		p.wantServing()
		p.wantNextUpgradeWorks()
	})
}
