//go:build unix

package upgrader

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-handover/handover/internal/wire"
)

// ---- the successor ----

var manifest = wire.Manifest{
	Version: wire.Version, Generation: 2, Probation: 3 * time.Second, DrainTimeout: time.Minute,
}

func TestSuccessorKeepsTheOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newSuccessor(t, 2, Options{}, manifest)
		p.watch(func(point string) {
			switch point {
			case "ready", "commit":
				p.wantOpen(false)
			case "open", "serving":
				p.wantOpen(true)
			}
		})
		ready := p.readyToServe()
		p.wantState(waiting)
		wantHears[wire.Ready](p.predecessor)
		p.wantOpen(false)
		p.commit()
		p.wantState(onProbation)
		must(t, <-ready)
		p.confirm()
		p.wantServing()
		p.watch(nil)
		want := []string{
			"state: waiting", "predecessor: wire.Ready", "at ready",
			"at commit", "state: on probation", "at open", "predecessor: wire.Serving", "at serving",
			"state: serving", "predecessor: wire.Serving",
		}
		if got := p.since(0); !slices.Equal(got, want) {
			t.Errorf("it happened\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		must(t, p.Ready()) // again
		p.predecessorDies()
		p.wantServing()
		p.wantNextUpgradeWorks()
	})
}

func TestWaitForCommitHasALimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newSuccessor(t, 2, Options{}, manifest)
		time.Sleep(time.Hour) // to initialise may take as long as the predecessor allows
		p.wantState(starting)
		ready := p.readyToServe()
		p.wantExactly(commitTimeout+secondLook, "given up", func() bool { return p.Err() != nil })
		if err := <-ready; !errors.Is(err, ErrAborted) {
			t.Errorf("Ready: %v, want ErrAborted", err)
		}
		p.wantEnd(stopped, ErrAborted)
		p.wantOpen(false)
		p.predecessor.wantClosed()
		wantPID(t, p.path, os.Getpid()) // the old one's, put there by servingPIDFile
		p.wantOldPIDFile()
	})
}

func TestCommitInTheSecondLookCounts(t *testing.T) {
	bubbles(t, func(t *testing.T) {
		p := newSuccessor(t, 2, Options{}, manifest)
		ready := p.readyToServe()
		must(t, p.old.commit())
		p.sleepUnheard(time.Hour, func() { p.predecessor.said <- wire.Commit{} })
		must(t, <-ready)
		p.wantState(onProbation)
	})
}

func TestWaitForConfirmHasALimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newSuccessor(t, 2, Options{}, manifest)
		p.readyToServe()
		p.commit()
		limit := manifest.Probation + confirmTimeout + secondLook
		p.wantExactly(limit, "serving on its own", func() bool { return p.state() == serving })
		wantHears[wire.Confirm](p.predecessor)
		p.wantOpen(true)
		// Whatever a predecessor says that wakes up, it is too late.
		p.predecessor.say(wire.Confirm{}, wire.Commit{})
		p.wantState(serving)
	})
}

func TestConfirmInTheSecondLookCounts(t *testing.T) {
	bubbles(t, func(t *testing.T) {
		p := newSuccessor(t, 2, Options{}, manifest)
		p.readyToServe()
		p.commit()
		p.sleepUnheard(time.Hour, func() { p.predecessor.said <- wire.Confirm{} })
		p.wantState(serving)
		wantDoesNotHear[wire.Confirm](p.predecessor)
	})
}

// TestEndOfThePredecessor: in every state its successor takes over by itself.
func TestEndOfThePredecessor(t *testing.T) {
	t.Run("starting", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			p.predecessorDies()
			p.wantState(starting)
			p.wantOpen(false)
			must(t, p.Ready())
			p.wantServing()
		})
	})
	t.Run("waiting", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			ready := p.readyToServe()
			p.predecessorDies()
			must(t, <-ready)
			p.wantServing()
		})
	})
	t.Run("waiting, between rename and commit", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			ready := p.readyToServe()
			must(t, p.old.commit())
			p.predecessorDies()
			must(t, <-ready)
			p.wantServing()
		})
	})
	t.Run("on probation", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			p.readyToServe()
			p.commit()
			p.predecessorDies()
			p.wantServing()
			p.wantNextUpgradeWorks()
		})
	})
	t.Run("serving", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			p.readyToServe()
			p.commit()
			p.confirm()
			p.predecessorDies()
			p.wantServing()
			time.Sleep(time.Hour)
			p.wantNever("log: predecessor did not finish its drain: killed")
		})
	})
	t.Run("stopped", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			p.Stop()
			p.predecessorDies()
			p.wantEnd(stopped, ErrStopped)
		})
	})
}

// TestPredecessorThatSpeaksNonsense is not dead: before commit it serves on.
func TestPredecessorThatSpeaksNonsense(t *testing.T) {
	nonsense := &wire.UnknownTypeError{Type: "later"}
	t.Run("starting", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			p.predecessor.breakWith(nonsense)
			p.wantEnd(stopped, ErrAborted)
			if err := p.Ready(); !errors.Is(err, ErrAborted) || !strings.Contains(err.Error(), "later") {
				t.Errorf("Ready: %v", err)
			}
			p.wantOldPIDFile()
		})
	})
	t.Run("waiting", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			ready := p.readyToServe()
			p.predecessor.breakWith(nonsense)
			if err := <-ready; !errors.Is(err, ErrAborted) {
				t.Errorf("Ready: %v", err)
			}
			p.wantOldPIDFile()
		})
	})
	t.Run("on probation", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			p.readyToServe()
			p.commit()
			p.predecessor.breakWith(nonsense)
			p.wantState(serving)
		})
	})
}

func TestAbort(t *testing.T) {
	abort := wire.Abort{Reason: "the operator says no"}
	t.Run("starting", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			p.predecessor.say(abort)
			p.wantEnd(stopped, ErrAborted)
			p.predecessor.wantClosed()
			p.wantOldPIDFile()
		})
	})
	t.Run("waiting", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			ready := p.readyToServe()
			p.predecessor.say(abort)
			if err := <-ready; !errors.Is(err, ErrAborted) || !strings.Contains(err.Error(), abort.Reason) {
				t.Errorf("Ready: %v, want ErrAborted and the reason", err)
			}
			p.wantEnd(stopped, ErrAborted)
			p.wantOpen(false)
			p.predecessor.wantClosed()
			p.wantOldPIDFile()
		})
	})
	t.Run("on probation", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			ready := p.readyToServe()
			p.commit()
			must(t, <-ready)
			must(t, p.old.rollback())
			p.predecessor.say(abort)
			p.wantEnd(stopped, ErrRolledBack)
			p.wantOpen(false)
			wantHears[wire.Stopping](p.predecessor) // acknowledged
			p.wantOldPIDFile()
			if err := p.Ready(); !errors.Is(err, ErrRolledBack) {
				t.Errorf("Ready again: %v", err)
			}
		})
	})
	t.Run("serving on its own", func(t *testing.T) {
		// The predecessor was stopped for long, and has taken the service back as
		// soon as it woke up. It must not find two who serve.
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			p.bring(onProbation)
			time.Sleep(time.Minute)
			p.wantState(serving)
			p.predecessor.say(abort)
			p.wantEnd(stopped, ErrRolledBack)
			p.wantOpen(false)
			wantHears[wire.Stopping](p.predecessor) // acknowledged
			time.Sleep(time.Hour)
			p.wantNever("log: predecessor did not finish its drain: killed")
		})
	})
	for _, in := range []state{serving, upgrading, probation} {
		t.Run(in.String()+", confirmed", func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newSuccessor(t, 2, Options{}, manifest)
				p.bring(serving)
				switch in {
				case upgrading:
					p.upgrade(PhaseReady)
				case probation:
					p.upgrade(PhaseProbation)
				default: // it serves
				}
				p.predecessor.say(abort) // it has no business to
				p.wantState(in)
				wantDoesNotHear[wire.Stopping](p.predecessor)
			})
		})
	}
	t.Run("stopped", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			p.readyToServe()
			p.commit()
			p.Fail(errors.New("mine"))
			p.predecessor.say(abort)
			p.wantEnd(stopped, ErrStopped)
			wantHears[wire.Stopping](p.predecessor) // acknowledged as well
		})
	})
}

// TestEndOnProbationIsTheEnd: a successor that was rolled back, or stops, drains
// for as long as it likes. Nothing is left of the wait for confirm.
func TestEndOnProbationIsTheEnd(t *testing.T) {
	ends := map[string]func(*process){
		"rolled back": func(p *process) { p.predecessor.say(wire.Abort{}) },
		"stopped":     (*process).Stop,
		"failed":      func(p *process) { p.Fail(nil) },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newSuccessor(t, 2, Options{DrainTimeout: -1}, manifest)
				p.bring(onProbation)
				end(p)
				time.Sleep(1000 * time.Hour)
				p.wantState(stopped)
				wantDoesNotHear[wire.Confirm](p.predecessor)
			})
		})
	}
}

// TestStopOfTheSuccessor: Stop ends one that is not committed alone, a stop
// signal the service; on probation both do.
func TestStopOfTheSuccessor(t *testing.T) {
	for _, service := range []bool{false, true} {
		for _, in := range []state{starting, waiting, onProbation} {
			t.Run(fmt.Sprintf("%s, service %v", in, service), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := newSuccessor(t, 2, Options{}, manifest)
					p.bring(in)
					p.end(stopRequest{service: service})
					p.wantEnd(stopped, ErrStopped)
					if service || in == onProbation {
						wantHears[wire.Stopping](p.predecessor)
						wantDoesNotHear[wire.Failed](p.predecessor)
					} else {
						if m := wantHears[wire.Failed](p.predecessor); m.Text != "it was stopped" {
							t.Errorf("the predecessor is told %q", m.Text)
						}
						wantDoesNotHear[wire.Stopping](p.predecessor)
					}
					if in == onProbation {
						must(t, p.old.confirm())
						wantFiles(t, p.path)
					} else {
						p.wantOldPIDFile()
						p.predecessor.wantClosed()
					}
				})
			})
		}
	}
}

func TestFailOfTheSuccessor(t *testing.T) {
	for _, in := range []state{starting, waiting, onProbation} {
		t.Run(in.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newSuccessor(t, 2, Options{}, manifest)
				p.bring(in)
				p.Fail(errors.New("no database"))
				p.wantEnd(stopped, ErrStopped)
				p.wantOpen(false)
				if m := wantHears[wire.Failed](p.predecessor); m.Text != "no database" {
					t.Errorf("the predecessor is told %q", m.Text)
				}
				if in == onProbation {
					must(t, p.old.rollback())
				}
				p.wantOldPIDFile()
			})
		})
	}
	t.Run("nil", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, manifest)
			p.Fail(nil)
			if m := wantHears[wire.Failed](p.predecessor); m.Text == "" {
				t.Error("no text")
			}
		})
	})
}

// TestFailOnProbationGivesTheServiceBack, seen from both sides: what the
// successor says is what the predecessor understands, and it is not killed
// while it drains.
func TestFailOnProbationGivesTheServiceBack(t *testing.T) {
	var said []wire.Message
	bubble(t, func(t *testing.T) {
		p := newSuccessor(t, 2, Options{}, manifest)
		p.bring(onProbation)
		before := len(p.predecessor.sent())
		p.Fail(errors.New("no"))
		p.predecessor.say(wire.Abort{Reason: "it gave up"})
		said = p.predecessor.sent()[before:]
	})
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{DrainTimeout: time.Minute})
		a, s := p.upgrade(PhaseProbation)
		s.say(said...)
		a.wantFailed(PhaseProbation)
		p.wantServing()
		time.Sleep(time.Minute)
		p.wantNever("successor 1: signal quit")
		p.wantNever("successor 1: signal killed")
	})
}

// TestPredecessorStops: during probation both processes stop.
func TestPredecessorStops(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newSuccessor(t, 2, Options{}, manifest)
		p.bring(onProbation)
		p.predecessor.say(wire.Stopping{})
		must(t, p.old.confirm())
		p.predecessor.end()
		p.wantEnd(stopped, ErrStopped)
		wantFiles(t, p.path)
	})
}

// TestStopsThatCross: each process leaves the names to the other one, and this
// is the one that hears of it.
func TestStopsThatCross(t *testing.T) {
	ends := map[string]func(*process){
		"a failure": func(p *process) { p.Fail(errors.New("no")) },
		"a stop":    (*process).Stop,
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newSuccessor(t, 2, Options{}, manifest)
				p.bring(onProbation)
				end(p)
				p.predecessor.say(wire.Stopping{})
				must(t, p.old.confirm())
				p.wantEnd(stopped, ErrStopped)
				wantFiles(t, p.path)
			})
		})
	}
}

func TestWordsOfAPredecessorOutOfOrder(t *testing.T) {
	words := []wire.Message{
		wire.Hello{},
		wire.Manifest{},
		wire.Progress{},
		wire.Ready{},
		wire.Failed{},
		wire.Commit{},
		wire.Serving{},
		wire.Confirm{},
		wire.Hurry{Generation: 9},
	}
	right := map[state]string{waiting: "wire.Commit", onProbation: "wire.Confirm"}
	for _, in := range []state{starting, waiting, onProbation, serving} {
		for _, m := range words {
			word := fmt.Sprintf("%T", m)
			if right[in] == word {
				continue
			}
			t.Run(fmt.Sprintf("%s while %s", word, in), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := newSuccessor(t, 2, Options{}, manifest)
					p.bring(in)
					p.predecessor.say(m)
					p.wantState(in)
					p.wantOpen(in == onProbation || in == serving)
				})
			})
		}
	}
}

func TestProgressGoesToTheWaitingPredecessorOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newSuccessor(t, 2, Options{}, manifest)
		p.Progress("one")
		synctest.Wait()
		if m := wantHears[wire.Progress](p.predecessor); m.Text != "one" {
			t.Errorf("the predecessor is told %q", m.Text)
		}
		p.bring(onProbation)
		p.Progress("two")
		p.confirm()
		p.Progress("three")
		synctest.Wait()
		if m, _ := hears[wire.Progress](p.predecessor); m.Text != "one" {
			t.Errorf("after commit the predecessor is told %q", m.Text)
		}
		p.Stop()
		p.Progress("four")
	})
	bubble(t, func(t *testing.T) {
		newServing(t, Options{}).Progress("nobody listens")
	})
}

func TestReadyBlocksEveryCallerUntilCommit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newSuccessor(t, 2, Options{}, manifest)
		callers := []<-chan error{p.readyToServe(), p.readyToServe(), p.readyToServe()}
		for _, c := range callers {
			if len(c) > 0 {
				t.Fatalf("Ready has returned before commit: %v", <-c)
			}
		}
		p.commit()
		for _, c := range callers {
			must(t, <-c)
		}
		if got := p.when("predecessor: wire.Ready"); len(got) != 1 {
			t.Errorf("ready was said %d times", len(got))
		}
	})
}

// TestReadyCanBeCalledAgain after an error of the pidfile.
func TestReadyCanBeCalledAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newFirst(t, Options{})
		must(t, os.Mkdir(p.path, 0o755))
		if err := p.Ready(); err == nil {
			t.Fatal("no error")
		}
		p.wantState(starting)
		p.wantOpen(false)
		must(t, os.Remove(p.path))
		must(t, p.Ready())
		p.wantServing()
	})
}

// TestSuccessorWithAnotherPIDFile: the predecessor's goes when there is no way
// back, not before.
func TestSuccessorWithAnotherPIDFile(t *testing.T) {
	bubble(t, func(t *testing.T) {
		former := pidfilePath(t)
		var old *pidfile
		p := newProcess(t, Options{}, func(p *process) {
			var err error
			p.pidfile, err = openPIDFile(p.path)
			must(t, err)
			old = servingPIDFile(t, former)
			p.r.former = succeed(t, old, os.Getpid())
			p.predecessor = newFarEnd(p, "predecessor")
			p.r.pred = predecessor{peer: newPeer(p.predecessor, 1, nil), manifest: manifest}
		})
		p.readyToServe()
		if _, err := os.Lstat(p.path); err == nil {
			t.Error("written before commit")
		}
		must(t, old.commit())
		p.predecessor.say(wire.Commit{})
		p.wantState(onProbation)
		wantPID(t, p.path, os.Getpid())
		if _, err := os.Lstat(former); err != nil {
			t.Errorf("the former pidfile: %v", err)
		}
		p.predecessor.say(wire.Confirm{})
		must(t, old.confirm())
		p.wantServing()
		wantFiles(t, former)
	})
}

// TestPIDFileThatFailsAtCommitIsSaid: the predecessor serves on.
func TestPIDFileThatFailsAtCommitIsSaid(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newProcess(t, Options{}, func(p *process) {
			var err error
			p.pidfile, err = openPIDFile(p.path)
			must(t, err)
			p.predecessor = newFarEnd(p, "predecessor")
			p.r.pred = predecessor{peer: newPeer(p.predecessor, 1, nil), manifest: manifest}
		})
		ready := p.readyToServe()
		must(t, os.Mkdir(p.path, 0o755))
		p.predecessor.say(wire.Commit{})
		if err := <-ready; err == nil {
			t.Error("Ready has returned nil")
		}
		wantHears[wire.Failed](p.predecessor)
		wantDoesNotHear[wire.Serving](p.predecessor)
		p.wantOpen(false)
	})
}

// ---- generations that drain ----

// TestOverduePredecessorIsKilled when it had the time that it asked for, and 10
// s more.
func TestOverduePredecessorIsKilled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newSuccessor(t, 2, Options{}, manifest)
		old := stand(t)
		p.r.pred.end = old.Kill
		p.bring(onProbation)
		time.Sleep(time.Second)
		p.confirm()
		const overdue = "log: predecessor did not finish its drain: killed"
		time.Sleep(time.Minute + hurryTimeout)
		p.wantState(serving)
		p.wantAt(time.Second+time.Minute+hurryTimeout, overdue)
		if got := p.Status().Counters.Killed; got != 1 {
			t.Errorf("%d generations are counted as killed", got)
		}
		state, err := old.Wait()
		if err != nil || state.Success() {
			t.Errorf("the predecessor ended with %v, %v", state, err)
		}
		p.predecessorDies()
	})
	bubble(t, func(t *testing.T) {
		without := manifest
		without.DrainTimeout = 0
		p := newSuccessor(t, 2, Options{}, without)
		p.bring(serving)
		time.Sleep(1000 * time.Hour)
		p.wantNever("log: predecessor did not finish its drain: killed")
	})
}

// stand starts a process that does nothing, in the place of a predecessor.
func stand(t *testing.T) *os.Process {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	cat, err := exec.LookPath("cat")
	must(t, err)
	p, err := os.StartProcess(cat, []string{"cat"}, &os.ProcAttr{Files: []*os.File{r}})
	must(t, err)
	t.Cleanup(func() { _ = p.Kill(); _, _ = p.Wait() }) // it may be reaped already
	return p
}

// TestWait keeps a generation that has drained until those before it have.
func TestWait(t *testing.T) {
	wait := func(p *process) <-chan struct{} {
		over := make(chan struct{})
		go func() { p.Wait(); close(over) }()
		synctest.Wait()
		return over
	}
	t.Run("without a predecessor", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newServing(t, Options{})
			if !isDone(wait(p)) {
				t.Error("it waits for nobody")
			}
		})
	})
	ends := map[string]func(*process){
		"until the predecessor has ended": (*process).predecessorDies,
		"until it is hurried":             (*process).Stop,
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newSuccessor(t, 2, Options{}, manifest)
				p.bring(serving)
				p.Stop()
				over := wait(p)
				if isDone(over) {
					t.Fatal("it does not wait")
				}
				end(p)
				<-over
			})
		})
	}
}

func TestTooManyGenerationsHurryTheOldest(t *testing.T) {
	tests := []struct{ generation, maxDraining, hurried int }{
		{2, 0, 0},
		{3, 0, 0},
		{4, 0, 1},
		{5, 0, 2},
		{2, 1, 0},
		{3, 1, 1},
		{9, 1, 7},
		{9, -1, 0},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("generation %d, at most %d", tt.generation, tt.maxDraining), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newSuccessor(t, tt.generation, Options{MaxDraining: tt.maxDraining}, manifest)
				p.bring(onProbation)
				wantDoesNotHear[wire.Hurry](p.predecessor)
				p.confirm()
				m, _ := hears[wire.Hurry](p.predecessor)
				if m.Generation != tt.hurried {
					t.Errorf("told to hurry: up to %d, want %d", m.Generation, tt.hurried)
				}
			})
		})
	}
}

// TestHurryGoesDownTheLine: each generation knows its neighbours only.
func TestHurryGoesDownTheLine(t *testing.T) {
	const overdue = "log: predecessor did not finish its drain: killed"
	bubble(t, func(t *testing.T) {
		p := newSuccessor(t, 3, Options{Probation: -1}, manifest)
		p.bring(serving)
		a, s := p.upgrade(PhaseCommit)
		s.say(wire.Serving{})
		a.want(nil)

		s.say(wire.Hurry{Generation: 1})
		if m := wantHears[wire.Hurry](p.predecessor); m.Generation != 1 || p.isHurried() {
			t.Errorf("passed on %+v, hurried %v", m, p.isHurried())
		}
		time.Sleep(30 * time.Second)
		p.wantNever(overdue) // the predecessor is generation 2

		s.say(wire.Hurry{Generation: 2})
		if m := wantHears[wire.Hurry](p.predecessor); m.Generation != 2 || p.isHurried() {
			t.Errorf("passed on %+v, hurried %v", m, p.isHurried())
		}
		time.Sleep(hurryTimeout)
		synctest.Wait()
		p.wantAt(40*time.Second, overdue)

		s.say(wire.Hurry{Generation: 3})
		if !p.isHurried() {
			t.Error("not hurried")
		}
	})
}
