//go:build unix

package upgrader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-handover/handover/internal/wire"
)

// ---- what goes well ----

func TestUpgradeKeepsTheOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		from := len(p.happened())
		a, s := p.upgrade(PhaseHello)
		s.watch(func(m wire.Message) {
			switch m.(type) {
			case wire.Commit:
				wantPID(t, p.path, s.pid)
				p.wantOpen(true)
			case wire.Confirm:
				if p.Err() != nil || a.isAnswered() {
					t.Error("Done is closed, or Upgrade has answered, before confirm was sent")
				}
			}
		})
		p.watch(func(point string) {
			switch point {
			case "hello", "ready":
				wantPID(t, p.path, os.Getpid())
				p.wantOpen(true)
			case "renamed", "committed", "serving":
				wantPID(t, p.path, s.pid)
				p.wantOpen(true)
			case "probation", "confirm":
				p.wantOpen(false)
			}
		})
		s.until(PhaseProbation)
		p.wantState(probation)
		p.wantExactly(DefaultProbation+secondLook, "confirmed", a.isAnswered)
		a.want(nil)
		p.wantEnd(draining, ErrUpgraded)
		p.wantOpen(false)
		wantPID(t, p.path, s.pid)
		want := []string{
			"state: upgrading",
			"at hello", "successor 1: wire.Manifest",
			"at ready", "at renamed", "successor 1: wire.Commit", "at committed",
			"at serving", "state: probation", "at probation",
			"at confirm", "successor 1: wire.Confirm", "state: draining", "successor 1: wire.Draining",
		}
		if got := p.since(from); !slices.Equal(got, want) {
			t.Errorf("it happened\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// TestDoneIsClosedBeforeUpgradeReturns: whoever has seen Upgrade return nil
// finds Done closed and Err set; who has seen Done closed finds Err set.
func TestDoneIsClosedBeforeUpgradeReturns(t *testing.T) {
	bubbles(t, func(t *testing.T) {
		p := newServing(t, Options{})
		go func() {
			<-p.Done()
			if err := p.Err(); err != ErrUpgraded { //nolint:errorlint // the sentinel itself
				t.Errorf("Done is closed and Err is %v", err)
			}
		}()
		a, _ := p.upgrade(PhaseProbation)
		a.want(nil) // ask checks Err
	})
}

// TestVerdictComesOnceTheSuccessorHasSettled: who has it, and asks for the status or
// for the next upgrade, asks a process that is no longer on probation.
func TestVerdictComesOnceTheSuccessorHasSettled(t *testing.T) {
	for _, byOrder := range []bool{false, true} {
		for name, settle := range map[string]func(*child){
			"it says so":           func(s *child) { s.say(wire.Serving{}) },
			"it ends":              func(s *child) { s.exit() },
			"it hangs":             func(*child) { time.Sleep(settleTimeout); synctest.Wait() },
			"it says other things": func(s *child) { s.say(wire.Hurry{}, wire.Serving{}, wire.Serving{}) },
		} {
			t.Run(fmt.Sprintf("%s, by order: %t", name, byOrder), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := newServing(t, Options{})
					a, s := p.upgrade(PhaseProbation)
					s.ignoreConfirm()
					confirmed := make(<-chan error)
					if byOrder {
						confirmed = p.order(order{})
					} else {
						time.Sleep(DefaultProbation + secondLook)
						synctest.Wait()
					}
					wantHears[wire.Confirm](s.farEnd)
					p.wantEnd(draining, ErrUpgraded) // that does not wait
					if a.isAnswered() || len(confirmed) > 0 {
						t.Error("answered before the successor has settled")
					}
					settle(s)
					a.want(nil)
					if byOrder {
						answered(t, confirmed, nil)
					}
				})
			})
		}
	}
}

func TestManifestDescribesThisProcess(t *testing.T) {
	tests := map[string]struct {
		o    Options
		want wire.Manifest
	}{
		"defaults": {
			Options{},
			wire.Manifest{Probation: DefaultProbation, DrainTimeout: DefaultDrainTimeout},
		},
		"given": {
			Options{Probation: time.Second, DrainTimeout: time.Minute},
			wire.Manifest{Probation: time.Second, DrainTimeout: time.Minute},
		},
		"none": {Options{Probation: -1, DrainTimeout: -1}, wire.Manifest{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newServing(t, tt.o)
				_, s := p.upgrade(PhaseReady)
				want := tt.want
				want.Version, want.Generation, want.PIDFile, want.Build = wire.Version, 2, p.path, build("")
				if got := wantHears[wire.Manifest](s.farEnd); fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("manifest %+v, want %+v", got, want)
				}
			})
		})
	}
}

func TestWithoutProbationTheSuccessorIsConfirmedAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{Probation: -1})
		a, s := p.upgrade(PhaseCommit)
		s.say(wire.Serving{})
		a.want(nil)
		if a.after != 0 {
			t.Errorf("it took %v", a.after)
		}
		wantHears[wire.Confirm](s.farEnd)
	})
}

// ---- limits ----

// TestSuccessorThatOverruns is asked for its goroutines, killed 2 s later, and
// 5 s after that given up on.
func TestSuccessorThatOverruns(t *testing.T) {
	tests := []struct {
		phase Phase
		limit time.Duration
	}{
		{PhaseHello, helloTimeout},
		{PhaseReady, DefaultReadyTimeout},
		{PhaseCommit, servingTimeout},
	}
	for _, tt := range tests {
		for _, immortal := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, immortal %v", tt.phase, immortal), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := newServing(t, Options{})
					a, s := p.upgrade(tt.phase)
					s.immortal.Store(immortal)
					<-a.answered
					end := tt.limit + secondLook
					p.wantAt(end, "successor 1: wire.Abort")
					p.wantAt(end, "successor 1: signal quit")
					p.wantAt(end+exitTimeout, "successor 1: signal killed")
					verdict := end + exitTimeout
					if immortal {
						verdict += killTimeout
					}
					if a.after != verdict {
						t.Errorf("Upgrade returned after %v, want %v", a.after, verdict)
					}
					e := a.wantFailed(tt.phase)
					if !errors.Is(e, ErrTimeout) || !errors.Is(e, os.ErrDeadlineExceeded) || e.PID != s.pid || e.Path != "/srv/app" {
						t.Errorf("%#v, want the pid, the path and ErrTimeout", e)
					}
					p.wantServing()
					p.wantNextUpgradeWorks()
				})
			})
		}
	}
}

// TestSuccessorThatEndsWhenAskedIsNotKilled, and the answer does not wait.
func TestSuccessorThatEndsWhenAskedIsNotKilled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		a, s := p.upgrade(PhaseReady)
		s.watch(func(m wire.Message) {
			if _, ok := m.(wire.Abort); ok {
				time.AfterFunc(time.Second, s.die)
			}
		})
		a.wantFailed(PhaseReady)
		if want := DefaultReadyTimeout + secondLook + time.Second; a.after != want {
			t.Errorf("Upgrade returned after %v, want %v", a.after, want)
		}
		p.wantNever("successor 1: signal killed")
	})
}

// TestAnswerInTheSecondLookCounts: a process that was stopped finds its timers
// run out and the answer unread.
func TestAnswerInTheSecondLookCounts(t *testing.T) {
	tests := []struct {
		phase  Phase
		limit  time.Duration
		answer func(*child) wire.Message
		next   Phase
	}{
		{PhaseHello, helloTimeout, func(c *child) wire.Message { return c.hello() }, PhaseReady},
		{PhaseReady, DefaultReadyTimeout, func(*child) wire.Message { return wire.Ready{} }, PhaseCommit},
		{PhaseCommit, servingTimeout, func(*child) wire.Message { return wire.Serving{} }, PhaseProbation},
	}
	for _, tt := range tests {
		t.Run(string(tt.phase), func(t *testing.T) {
			bubbles(t, func(t *testing.T) {
				p := newServing(t, Options{})
				_, s := p.upgrade(tt.phase)
				p.sleepUnheard(tt.limit+time.Hour, func() { s.said <- tt.answer(s) })
				if got := s.phase(); got != tt.next {
					t.Fatalf("phase %s, want %s\n%s", got, tt.next, p)
				}
			})
		})
	}
}

func TestReadyTimeoutIsAnOption(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{ReadyTimeout: 3 * time.Second})
		a, s := p.upgrade(PhaseReady)
		p.wantExactly(3*time.Second+secondLook, "aborted", func() bool { _, ok := hears[wire.Abort](s.farEnd); return ok })
		a.wantFailed(PhaseReady)
	})
}

func TestProgressStartsReadyTimeoutAnew(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		a, s := p.upgrade(PhaseReady)
		for i := range 5 {
			time.Sleep(50 * time.Second)
			s.say(wire.Progress{Text: fmt.Sprintf("%d tables loaded", i)})
		}
		p.wantExactly(DefaultReadyTimeout+secondLook, "aborted", func() bool { _, ok := hears[wire.Abort](s.farEnd); return ok })
		if e := a.wantFailed(PhaseReady); e.Text != "4 tables loaded" || !strings.Contains(e.Error(), "4 tables loaded") {
			t.Errorf("%v, want the successor's last words", e)
		}
	})
}

// TestProgressHasAnEnd, however often the successor says that it gets there.
func TestProgressHasAnEnd(t *testing.T) {
	tests := []struct {
		every, ready, end time.Duration
	}{
		{50 * time.Second, 0, maxReadyWait + secondLook},
		{30 * time.Second, 0, maxReadyWait + secondLook},
		{7 * time.Millisecond, 0, maxReadyWait + secondLook},
		{time.Hour, 2 * time.Hour, 2*time.Hour + secondLook}, // an option above the maximum is meant
	}
	for _, tt := range tests {
		t.Run(tt.every.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{ReadyTimeout: tt.ready})
				a, s := p.upgrade(PhaseReady)
				for time.Since(p.begun) < tt.end+time.Minute && !a.isAnswered() {
					time.Sleep(tt.every)
					s.say(wire.Progress{Text: "still there"})
				}
				p.wantAt(tt.end, "successor 1: wire.Abort")
				a.wantFailed(PhaseReady)
			})
		})
	}
}

func TestDrainTimeoutHurries(t *testing.T) {
	ends := map[string]func(*process){
		"an upgrade": func(p *process) { a, _ := p.upgrade(PhaseProbation); a.want(nil) },
		"a stop":     func(p *process) { p.Stop() },
	}
	for name, end := range ends {
		t.Run("after "+name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{DrainTimeout: time.Minute})
				end(p)
				p.wantExactly(time.Minute, "hurried", p.isHurried)
			})
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{DrainTimeout: -1})
				end(p)
				time.Sleep(1000 * time.Hour)
				if p.isHurried() {
					t.Error("hurried, without a limit")
				}
			})
		})
	}
}

// ---- races ----

// TestExitBeatsReady: a successor that is ready and dead is dead.
func TestExitBeatsReady(t *testing.T) {
	bubbles(t, func(t *testing.T) {
		p := newServing(t, Options{})
		a, s := p.upgrade(PhaseReady)
		p.sleepUnheard(time.Second, func() {
			s.said <- wire.Ready{}
			s.die()
		})
		e := a.wantFailed(PhaseReady)
		if !errors.Is(e, errEnded) {
			t.Errorf("%v, want that it ended", e)
		}
		wantDoesNotHear[wire.Commit](s.farEnd)
		p.wantNever("at renamed")
		p.wantServing()
	})
}

// TestEndOfTheChannelBeatsReady: the same, before the kernel has told its end.
func TestEndOfTheChannelBeatsReady(t *testing.T) {
	bubbles(t, func(t *testing.T) {
		p := newServing(t, Options{})
		a, s := p.upgrade(PhaseReady)
		p.sleepUnheard(time.Second, func() {
			s.said <- wire.Ready{}
			s.end()
		})
		time.Sleep(time.Second)
		s.exit()
		a.wantFailed(PhaseCommit) // the pidfile was renamed, and is back
		p.wantNever("state: probation")
		p.wantServing()
	})
}

// TestWordsBeatTheEndOfProbation: what the successor has said before its time
// is up is heard, never confirmed away.
func TestWordsBeatTheEndOfProbation(t *testing.T) {
	tests := map[string]struct {
		say  func(*child)
		want state
	}{
		"it gave up":  {func(c *child) { c.said <- wire.Failed{Text: "no"} }, serving},
		"it stops":    {func(c *child) { c.said <- wire.Stopping{} }, stopped},
		"it ended":    {(*child).die, serving},
		"it vanished": {func(c *child) { c.end() }, serving},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bubbles(t, func(t *testing.T) {
				p := newServing(t, Options{})
				_, s := p.upgrade(PhaseProbation)
				p.sleepUnheard(DefaultProbation+time.Second, func() { tt.say(s) })
				p.wantState(tt.want)
			})
		})
	}
}

func TestStormOfRequestsIsOneAttempt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		var storm []*asked
		for range 50 {
			storm = append(storm, p.ask())
		}
		s := p.children[0].until(PhaseReady)
		for range 20 {
			p.trigger(t.Context())
			storm = append(storm, p.ask())
		}
		s.say(wire.Ready{})
		storm = append(storm, p.ask())
		s.say(wire.Serving{})
		storm = append(storm, p.ask())
		storm[0].want(nil)
		for _, a := range storm[1:] {
			a.want(ErrBusy)
		}
		if len(p.children) != 1 {
			t.Errorf("%d successors were started", len(p.children))
		}
	})
}

// ---- the caller ----

func TestEndOfTheContextGivesTheAttemptUp(t *testing.T) {
	why := errors.New("the deploy was called off")
	for _, phase := range []Phase{PhaseHello, PhaseReady} {
		t.Run(string(phase), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{})
				a, s := p.upgrade(phase)
				time.Sleep(time.Second)
				a.cancel(why)
				synctest.Wait()
				if m := wantHears[wire.Abort](s.farEnd); m.Reason != why.Error() {
					t.Errorf("the successor is told %q", m.Reason)
				}
				if a.isAnswered() {
					t.Error("answered before the successor has ended")
				}
				s.exit()
				if e := a.wantFailed(phase); !errors.Is(e, why) {
					t.Errorf("%v, want the context's cause", e)
				}
				p.wantNever("successor 1: signal quit")
				p.wantServing()
				p.wantNextUpgradeWorks()
			})
		})
	}
	t.Run("prepare", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newServing(t, Options{})
			p.onLaunch = func(ctx context.Context) { <-ctx.Done() }
			p.launchError = errors.New("called off")
			a := p.ask()
			a.cancel(why)
			if e := a.wantFailed(PhasePrepare); !errors.Is(e, why) {
				t.Errorf("%v, want the context's cause", e)
			}
			p.wantServing()
		})
	})
	t.Run("between prepare and hello", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newServing(t, Options{})
			p.onLaunch = func(ctx context.Context) { <-ctx.Done() }
			a := p.ask()
			a.cancel(why)
			synctest.Wait()
			s := p.children[0]
			wantHears[wire.Abort](s.farEnd)
			s.exit()
			a.want(why)
			p.wantServing()
		})
	})
	t.Run("before it began", func(t *testing.T) {
		bubbles(t, func(t *testing.T) {
			p := newServing(t, Options{})
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(why)
			if err := p.Upgrade(ctx); err != why { //nolint:errorlint // the cause itself
				t.Errorf("Upgrade: %v, want %v", err, why)
			}
			synctest.Wait()
			if len(p.children) > 0 {
				t.Error("a successor was started")
			}
		})
	})
}

// TestEndOfTheContextAfterCommitEndsTheWaitOnly: the upgrade goes on.
func TestEndOfTheContextAfterCommitEndsTheWaitOnly(t *testing.T) {
	for _, phase := range []Phase{PhaseCommit, PhaseProbation} {
		t.Run(string(phase), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{})
				a, s := p.upgrade(phase)
				a.cancel(nil)
				if synctest.Wait(); phase == PhaseCommit {
					s.say(wire.Serving{})
				}
				a.want(context.Canceled)
				if a.after != 0 {
					t.Errorf("the wait ended after %v", a.after)
				}
				p.wantState(probation)
				wantDoesNotHear[wire.Abort](s.farEnd)
				time.Sleep(DefaultProbation + secondLook)
				p.wantEnd(draining, ErrUpgraded)
			})
		})
	}
}

// ---- Check ----

func TestCheckRunsBehindAClosedGate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var p *process
		calls := 0
		p = newServing(t, Options{Check: func(ctx context.Context) error {
			calls++
			p.wantOpen(false)
			if d, ok := ctx.Deadline(); !ok || !d.Equal(time.Now().Add(DefaultProbation)) {
				t.Errorf("the deadline is %v, want the end of probation", d)
			}
			return nil
		}})
		a, _ := p.upgrade(PhaseProbation)
		p.wantExactly(DefaultProbation+secondLook, "confirmed", a.isAnswered)
		a.want(nil)
		if calls != 1 {
			t.Errorf("%d checks", calls)
		}
	})
}

func TestFailedCheckRollsBack(t *testing.T) {
	bad := errors.New("503")
	tests := map[string]struct {
		check func(context.Context) error
		cause error
		at    time.Duration
	}{
		"at once": {func(context.Context) error { return bad }, bad, 0},
		"late": {func(context.Context) error {
			time.Sleep(DefaultProbation - 1)
			return bad
		}, bad, DefaultProbation - 1},
		"hanging": {func(context.Context) error {
			time.Sleep(time.Hour)
			return nil
		}, ErrTimeout, DefaultProbation + secondLook + checkTimeout},
		"ended by its context": {func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}, context.DeadlineExceeded, DefaultProbation},
		"after the end of its context": {func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(time.Second)
			return bad
		}, bad, DefaultProbation + time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{Check: tt.check})
				a, s := p.upgrade(PhaseCommit)
				s.say(wire.Serving{})
				e := a.wantFailed(PhaseProbation)
				if !errors.Is(e, tt.cause) || !strings.Contains(e.Error(), "check") || a.after != tt.at {
					t.Errorf("%v after %v, want %v of the check after %v", e, a.after, tt.cause, tt.at)
				}
				wantHears[wire.Abort](s.farEnd)
				wantDoesNotHear[wire.Confirm](s.farEnd)
				p.wantServing()
			})
		})
	}
}

// TestCheckMayWatchForAllOfProbation, and answer when its context ends.
func TestCheckMayWatchForAllOfProbation(t *testing.T) {
	for _, pause := range []time.Duration{0, secondLook, time.Second} {
		t.Run(pause.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{Check: func(ctx context.Context) error {
					<-ctx.Done()
					time.Sleep(pause)
					return nil
				}})
				a, _ := p.upgrade(PhaseProbation)
				a.want(nil)
				if want := DefaultProbation + max(pause, secondLook); a.after != want {
					t.Errorf("confirmed after %v, want %v", a.after, want)
				}
			})
		})
	}
}

// TestEndOfTheCallersContextDoesNotEndTheCheck: the attempt goes on.
func TestEndOfTheCallersContextDoesNotEndTheCheck(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{Check: func(ctx context.Context) error {
			time.Sleep(time.Second)
			return ctx.Err()
		}})
		a, _ := p.upgrade(PhaseProbation)
		a.cancel(nil)
		time.Sleep(DefaultProbation + secondLook)
		p.wantEnd(draining, ErrUpgraded)
	})
}

// TestVerdictOfAnOldCheckIsIgnored in the next attempt.
func TestVerdictOfAnOldCheckIsIgnored(t *testing.T) {
	bubble(t, func(t *testing.T) {
		first := true
		p := newServing(t, Options{Check: func(context.Context) error {
			if !first {
				return nil
			}
			first = false
			time.Sleep(3 * time.Second)
			return errors.New("of the first")
		}})
		a, s := p.upgrade(PhaseProbation)
		s.exit()
		a.wantFailed(PhaseProbation)
		a, _ = p.upgrade(PhaseProbation)
		a.want(nil)
	})
}

// ---- a successor that fails ----

func TestEndOfTheSuccessorCostsNothing(t *testing.T) {
	for _, phase := range []Phase{PhaseHello, PhaseReady, PhaseCommit, PhaseProbation} {
		ends := map[string]func(*child){
			"it is reaped first":      (*child).exit,
			"its channel ends first":  func(c *child) { c.end(); synctest.Wait(); time.Sleep(time.Second); c.exit() },
			"its channel only":        func(c *child) { c.end() },
			"it says what is no word": func(c *child) { c.breakWith(&wire.UnknownTypeError{Type: "later"}) },
		}
		for name, end := range ends {
			t.Run(string(phase)+", "+name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := newServing(t, Options{})
					a, s := p.upgrade(phase)
					end(s)
					e := a.wantFailed(phase)
					var unknown *wire.UnknownTypeError
					if e.PID != s.pid || !errors.Is(e, errEnded) && !errors.As(e, &unknown) {
						t.Errorf("%v, want pid %d and its end", e, s.pid)
					}
					p.wantServing()
					p.wantNextUpgradeWorks()
				})
			})
		}
	}
}

func TestSuccessorSaysWhyItFails(t *testing.T) {
	for _, phase := range []Phase{PhaseHello, PhaseReady, PhaseCommit, PhaseProbation} {
		t.Run(string(phase), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{})
				a, s := p.upgrade(phase)
				s.say(wire.Failed{Text: "no database"})
				wantHears[wire.Abort](s.farEnd)
				s.exit()
				if e := a.wantFailed(phase); e.Text != "no database" || !strings.Contains(e.Error(), "it said: no database") {
					t.Errorf("%v, want the successor's words", e)
				}
				p.wantServing()
				p.wantNextUpgradeWorks()
			})
		})
	}
}

func TestFailedLaunch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		p.launchError = &os.PathError{Op: "fork/exec", Path: "/srv/app", Err: syscall.ENOEXEC}
		a := p.ask()
		if e := a.wantFailed(PhaseStart); !errors.Is(e, syscall.ENOEXEC) || e.PID != 0 || a.after != 0 {
			t.Errorf("%#v after %v", e, a.after)
		}
		p.wantServing()
		p.launchError = nil
		p.wantNextUpgradeWorks()
	})
}

func TestPIDFileThatCannotBeCommitted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		a, s := p.upgrade(PhaseReady)
		must(t, os.Remove(p.path)) // somebody else's doing
		s.say(wire.Ready{})
		wantDoesNotHear[wire.Commit](s.farEnd)
		wantHears[wire.Abort](s.farEnd)
		p.wantOpen(true)
		s.exit()
		a.wantFailed(PhaseCommit)
		p.wantState(serving)
		p.wantNextUpgradeWorks()
	})
}

// TestWordsOutOfOrder: a successor that is not of this protocol is ended,
// whatever it says and when.
func TestWordsOutOfOrder(t *testing.T) {
	words := []wire.Message{
		wire.Hello{Version: wire.Version, PID: firstChild},
		wire.Ready{},
		wire.Serving{},
		wire.Confirm{},
		wire.Manifest{},
		wire.Commit{},
		wire.Abort{},
		wire.Hurry{},
	}
	expected := map[Phase]string{PhaseHello: "wire.Hello", PhaseReady: "wire.Ready", PhaseCommit: "wire.Serving", PhaseProbation: "wire.Confirm"}
	for phase, right := range expected {
		for _, m := range words {
			word := fmt.Sprintf("%T", m)
			if word == right {
				continue
			}
			t.Run(fmt.Sprintf("%s in phase %s", word, phase), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := newServing(t, Options{})
					a, s := p.upgrade(phase)
					s.say(m)
					wantHears[wire.Abort](s.farEnd)
					s.say(m) // twice is no worse
					if e := a.wantFailed(phase); !strings.Contains(e.Error(), "it sent a "+word) {
						t.Errorf("%v, want one that names %s", e, word)
					}
					p.wantServing()
					p.wantNextUpgradeWorks()
				})
			})
		}
	}
}

func TestHelloThatDoesNotFit(t *testing.T) {
	tests := map[string]struct {
		hello wire.Hello
		texts []string
	}{
		"older":           {wire.Hello{Version: wire.Version - 1, PID: firstChild}, []string{"version 0", "version 1"}},
		"newer":           {wire.Hello{Version: wire.Version + 1, PID: firstChild}, []string{"version 2", "version 1"}},
		"another process": {wire.Hello{Version: wire.Version, PID: 4711}, []string{"process 4711", "exec"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{})
				a, s := p.upgrade(PhaseHello)
				s.say(tt.hello)
				wantDoesNotHear[wire.Manifest](s.farEnd)
				e := a.wantFailed(PhaseHello)
				for _, text := range tt.texts {
					if !strings.Contains(e.Error(), text) {
						t.Errorf("%v, want one with %q", e, text)
					}
				}
				p.wantServing()
			})
		})
	}
}

// TestDeafSuccessor does not read: Send fails after its time.
func TestDeafSuccessor(t *testing.T) {
	tests := []struct {
		until Phase
		m     func(*child) wire.Message // what is answered in vain
		phase Phase
	}{
		{PhaseHello, func(c *child) wire.Message { return c.hello() }, PhaseReady},
		{PhaseReady, func(*child) wire.Message { return wire.Ready{} }, PhaseCommit},
		{PhaseCommit, func(*child) wire.Message { return wire.Serving{} }, PhaseProbation},
	}
	for _, tt := range tests {
		t.Run("before "+string(tt.phase), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{})
				a, s := p.upgrade(tt.until)
				s.deafen()
				s.say(tt.m(s))
				a.wantFailed(tt.phase)
				p.wantServing()
				time.Sleep(time.Hour)
				p.wantNextUpgradeWorks()
			})
		})
	}
}

// TestSuccessorThatVanishesOnProbationIsKilled: whether the next attempt may
// begin does not depend on it, and the report comes when it is reaped.
func TestSuccessorThatVanishesOnProbationIsKilled(t *testing.T) {
	for _, immortal := range []bool{false, true} {
		t.Run(fmt.Sprintf("immortal %v", immortal), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{})
				a, s := p.upgrade(PhaseProbation)
				s.immortal.Store(immortal)
				time.Sleep(time.Second)
				s.end()
				p.wantServing()
				p.wantAt(time.Second, "successor 1: signal killed")
				next, _ := p.upgrade(PhaseProbation)
				a.wantFailed(PhaseProbation)
				want := time.Second
				if immortal {
					want += killTimeout
				}
				if a.after != want {
					t.Errorf("Upgrade returned after %v, want %v", a.after, want)
				}
				next.want(nil)
			})
		})
	}
}

func TestRolledBackTwiceThenUpgraded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		for range 2 {
			a, s := p.upgrade(PhaseProbation)
			time.Sleep(DefaultProbation - 1)
			s.exit()
			a.wantFailed(PhaseProbation)
			p.wantServing()
		}
		p.wantNextUpgradeWorks()
		if p.Generation() != 1 {
			t.Errorf("generation %d", p.Generation())
		}
	})
}

// TestRollBackKeepsTheOrder: first accept, then the pidfile, then the report.
func TestRollBackKeepsTheOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		a, s := p.upgrade(PhaseProbation)
		from := len(p.happened())
		p.watchLog(func(message string) {
			if message == "state changed" {
				p.wantOpen(true)
				wantPID(t, p.path, os.Getpid())
				if a.isAnswered() {
					t.Error("answered before this process serves again")
				}
			}
		})
		s.say(wire.Failed{Text: "no"})
		a.wantFailed(PhaseProbation)
		want := []string{"state: serving", "successor 1: wire.Abort"}
		if got := p.since(from); len(got) < 2 || !slices.Equal(got[:2], want) {
			t.Errorf("it happened %q, want %q", got, want)
		}
	})
}

// ---- a successor that was rolled back alive ----

func TestRolledBackSuccessorMayDrain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{DrainTimeout: time.Minute})
		a, s := p.upgrade(PhaseProbation)
		s.say(wire.Failed{Text: "no"})
		if a.wantFailed(PhaseProbation); a.after != 0 {
			t.Errorf("the answer waited %v for a process with clients", a.after)
		}
		time.Sleep(time.Second)
		s.say(wire.Stopping{}) // the abort is acknowledged
		p.wantNextUpgradeWorks()
		time.Sleep(time.Hour)
		p.wantNever("successor 1: signal quit")
		p.wantAt(time.Second+time.Minute+hurryTimeout, "successor 1: signal killed")
	})
}

func TestRolledBackSuccessorMayDrainForEver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{DrainTimeout: -1})
		a, s := p.upgrade(PhaseProbation)
		s.say(wire.Failed{Text: "no"}, wire.Stopping{})
		a.wantFailed(PhaseProbation)
		time.Sleep(1000 * time.Hour)
		p.wantNever("successor 1: signal quit")
		p.wantNever("successor 1: signal killed")
	})
}

func TestRolledBackSuccessorThatHangsIsEnded(t *testing.T) {
	for _, drain := range []time.Duration{-1, 0, time.Minute} {
		t.Run(drain.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newServing(t, Options{DrainTimeout: drain})
				a, s := p.upgrade(PhaseProbation)
				s.say(wire.Failed{Text: "no"})
				a.wantFailed(PhaseProbation)
				time.Sleep(time.Hour)
				p.wantAt(exitTimeout, "successor 1: signal quit")
				p.wantAt(2*exitTimeout, "successor 1: signal killed")
			})
		})
	}
}
