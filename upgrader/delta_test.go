//go:build unix

package upgrader

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// changing is a state that tells what has changed.
type changing struct {
	writerFunc
	delta func(w io.Writer) error
}

func (c changing) WriteDelta(w io.Writer) error { return c.delta(w) }

// ---- in the old process ----

// newChanging returns a process that serves and has these states.
func newChanging(t *testing.T, states map[string]func(w io.Writer) error) *process {
	t.Helper()
	p := newServing(t, Options{StateChecksum: true})
	p.onLaunch = func(ctx context.Context) {
		_, files, _, err := p.writeStates(ctx)
		closeAll(files)
		p.launchError = err
	}
	for name, delta := range states {
		must(t, p.SetState(name, changing{text("base"), delta}))
	}
	return p
}

// wantDelta is what the successor gets of one that was sent, by name.
func (c *child) wantDelta(want map[string]string) {
	c.p.t.Helper()
	m := wantHears[wire.Delta](c.farEnd)
	for _, s := range m.States {
		if len(want[s.Name]) != int(s.Size) || checkSum([]byte(want[s.Name]), s.Sum) != nil || s.Sum == 0 {
			c.p.t.Errorf("%+v, want %q", s, want[s.Name])
		}
	}
	if len(m.States) != len(want) {
		c.p.t.Errorf("%+v, want %q", m.States, want)
	}
}

// TestDeltaComesBetweenReadyAndCommit, while the old process serves on.
func TestDeltaComesBetweenReadyAndCommit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newChanging(t, map[string]func(io.Writer) error{
			"two": text("second", " part"), "one": text("first"), "none": text(), "empty": text(""),
		})
		must(t, p.SetState("constant", Bytes("x")))
		opened := openFDs(t)
		a, s := p.upgrade(PhaseReady)
		s.watch(func(m wire.Message) {
			if _, ok := m.(wire.Delta); !ok {
				return
			}
			wantPID(t, p.path, os.Getpid())
			p.wantOpen(true)
		})
		from := len(p.happened())
		s.say(wire.Ready{Deltas: true})
		s.wantDelta(map[string]string{"one": "first", "two": "second part"})
		if s.delta != "firstsecond part" {
			t.Errorf("the file holds %q", s.delta)
		}
		wantNoMoreFDs(t, opened+1) // the pidfile's
		wantDoesNotHear[wire.Commit](s.farEnd)
		if p.state() != upgrading || !p.isCommitted() {
			t.Errorf("%s, committed %v", p.state(), p.isCommitted())
		}
		time.Sleep(deltaTimeout)
		s.say(wire.Ready{})
		wantHears[wire.Commit](s.farEnd)
		s.say(wire.Serving{})
		a.want(nil)
		want := []string{"at deltas", "successor 1: wire.Delta", "at ready", "at renamed", "successor 1: wire.Commit", "at committed"}
		if got := p.since(from); !slices.Equal(got[:len(want)], want) {
			t.Errorf("it happened\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// TestCommitWithoutADelta comes at once: nothing has changed, or nothing can.
func TestCommitWithoutADelta(t *testing.T) {
	for name, states := range map[string]map[string]func(io.Writer) error{
		"nothing has changed": {"s": text(), "t": text("")}, "nothing can": nil,
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newChanging(t, states)
				must(t, p.SetState("constant", Bytes("x")))
				a, s := p.upgrade(PhaseReady)
				s.say(wire.Ready{Deltas: true})
				wantDoesNotHear[wire.Delta](s.farEnd)
				s.say(wire.Serving{})
				a.want(nil)
			})
		})
	}
}

// TestSuccessorThatAsksForNoDeltaGetsNone: it is of a build that has none.
func TestSuccessorThatAsksForNoDeltaGetsNone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newChanging(t, map[string]func(io.Writer) error{"s": func(io.Writer) error { t.Error("called"); return nil }})
		p.wantNextUpgradeWorks()
	})
}

// TestDeltaOfWhatHasWrittenTheState: what was set in the meantime has not.
func TestDeltaOfWhatHasWrittenTheState(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newChanging(t, map[string]func(io.Writer) error{"s": text("changed")})
		_, s := p.upgrade(PhaseReady)
		never := func(io.Writer) error { t.Error("called"); return nil }
		must(t, p.SetState("s", changing{never, never}))
		must(t, p.SetState("new", changing{never, never}))
		s.say(wire.Ready{Deltas: true})
		s.wantDelta(map[string]string{"s": "changed"})
	})
}

// journal is a state that grows.
type journal struct{ text, since string }

func (j *journal) add(text string) { j.text, j.since = j.text+text, j.since+text }

func (j *journal) WriteTo(w io.Writer) (int64, error) {
	j.since = ""
	n, err := io.WriteString(w, j.text)
	return int64(n), err
}

func (j *journal) WriteDelta(w io.Writer) error {
	_, err := io.WriteString(w, j.since)
	return err
}

// TestDeltaIsSinceTheSuccessorsOwnState: a standby that comes while a successor
// gets ready gets its states after that, and not in between.
func TestDeltaIsSinceTheSuccessorsOwnState(t *testing.T) {
	for _, succeeds := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			p := newServing(t, Options{})
			j := &journal{text: "a"}
			must(t, p.SetState("s", j))
			written := func(ctx context.Context) string {
				_, files, _, err := p.writeStates(ctx)
				must(t, err)
				defer closeAll(files)
				b := make([]byte, 10)
				n, _ := files[0].ReadAt(b, 0)
				return string(b[:n])
			}
			base := ""
			p.onLaunch = func(ctx context.Context) { base = written(ctx) }
			a, c := p.upgrade(PhaseReady)
			j.add("b")
			standby := make(chan string, 1)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() { standby <- written(ctx) }()
			synctest.Wait()
			j.add("c")
			if !succeeds {
				c.exit()
				a.wantFailed(PhaseReady)
				synctest.Wait()
				if got := <-standby; got != "abc" {
					t.Errorf("the standby has %q, want abc", got)
				}
				if p.states.takeIfFree(t.Context(), 2) {
					t.Error("the states are another process's, and were taken")
				}
				cancel()
				synctest.Wait()
				if p.states.takeIfFree(t.Context(), 1) {
					t.Error("the difference since an earlier writing could be told")
				}
				return
			}
			c.say(wire.Ready{Deltas: true})
			wantHears[wire.Delta](c.farEnd)
			if got := base + c.delta; got != "abc" {
				t.Errorf("the successor has %q, want abc", got)
			}
			if len(standby) > 0 {
				t.Error("the standby has its states before the attempt is over")
			}
			c.say(wire.Ready{}, wire.Serving{})
			p.order(order{})
			a.want(nil)
			synctest.Wait()
			<-standby
		})
	}
}

// TestDeltaThatCannotBeWritten: the attempt fails, the old process serves on,
// and the next upgrade works.
func TestDeltaThatCannotBeWritten(t *testing.T) {
	broken := errors.New("the log is locked")
	tests := map[string]struct {
		delta func(w io.Writer) error
		want  string
		after time.Duration
	}{
		"an error": {func(io.Writer) error { return broken }, `state "s": its difference: the log is locked`, 0},
		"a panic":  {func(io.Writer) error { panic("at the disco") }, `state "s": its difference: it panicked: at the disco`, 0},
		"no end": {
			func(io.Writer) error { time.Sleep(time.Hour); return nil },
			`state "s": its difference: not written in 30s: limit reached`, deltaTimeout,
		},
		"no end of writing": {func(w io.Writer) (err error) {
			for err == nil {
				time.Sleep(time.Second)
				_, err = w.Write(make([]byte, 2*stateBuffer))
			}
			return err
		}, `state "s": its difference: not written in 30s: limit reached`, deltaTimeout},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				fail := true
				p := newChanging(t, map[string]func(io.Writer) error{"s": func(w io.Writer) error {
					if fail {
						return tt.delta(w)
					}
					return text("changed")(w)
				}})
				before := openFDs(t)
				a, s := p.upgrade(PhaseReady)
				s.say(wire.Ready{Deltas: true})
				time.Sleep(tt.after)
				synctest.Wait()
				wantHears[wire.Abort](s.farEnd)
				s.exit()
				e := a.wantFailed(PhaseReady)
				wantText(t, e, tt.want)
				if tt.after > 0 != errors.Is(e, ErrTimeout) || name == "an error" && !errors.Is(e, broken) {
					t.Errorf("%#v", e)
				}
				wantDoesNotHear[wire.Delta](s.farEnd)
				p.wantServing()
				wantNoMoreFDs(t, before)
				fail = false
				time.Sleep(time.Hour) // the callback that was left behind returns
				p.wantNextUpgradeWorks()
			})
		})
	}
}

// TestCallbackThatWasLeftBehind is not called a second time meanwhile: the next
// attempt says what it waits for.
func TestCallbackThatWasLeftBehind(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hangs, calls := make(chan struct{}), 0
		p := newChanging(t, nil)
		must(t, p.SetState("s", writerFunc(func(w io.Writer) error {
			calls++
			<-hangs
			_, err := w.Write(make([]byte, 2*stateBuffer))
			if !errors.Is(err, ErrTimeout) && calls == 1 {
				t.Errorf("its Write: %v, want ErrTimeout", err)
			}
			return err
		})))
		var last error
		for range 2 {
			begun := time.Now()
			a := p.ask()
			a.want(ErrTimeout)
			wantText(t, a.err, `state "s": `)
			wantText(t, a.err, "the states were not written in 1m0s: limit reached")
			if took := time.Since(begun); took != DefaultReadyTimeout {
				t.Errorf("it took %v", took)
			}
			p.wantServing()
			last = a.err
		}
		wantText(t, last, "a callback that was called earlier has not returned")
		close(hangs)
		synctest.Wait()
		if calls != 1 {
			t.Errorf("%d calls at once", calls)
		}
		must(t, p.SetState("s", Bytes("x")))
		p.wantNextUpgradeWorks()
	})
}

// TestAttemptThatEndsWhileADeltaIsWritten: it ends as any other does, and what
// was written is closed.
func TestAttemptThatEndsWhileADeltaIsWritten(t *testing.T) {
	tests := map[string]struct {
		end  func(p *process, a *asked, s *child)
		want error
	}{
		"the successor dies":   {func(_ *process, _ *asked, s *child) { s.exit() }, errEnded},
		"it gives up":          {func(_ *process, _ *asked, s *child) { s.say(wire.Failed{Text: "no"}); s.exit() }, nil},
		"it says ready twice":  {func(_ *process, _ *asked, s *child) { s.say(wire.Ready{Deltas: true}); s.exit() }, nil},
		"it says ready early":  {func(_ *process, _ *asked, s *child) { s.say(wire.Ready{}); s.exit() }, nil},
		"it says serving":      {func(_ *process, _ *asked, s *child) { s.say(wire.Serving{}); s.exit() }, nil},
		"it sends a delta":     {func(p *process, _ *asked, s *child) { s.say(received{files: []*os.File{memory(p.t, "x")}}); s.exit() }, nil},
		"the caller gives up":  {func(_ *process, a *asked, s *child) { a.cancel(context.Canceled); synctest.Wait(); s.exit() }, context.Canceled},
		"the service is ended": {func(p *process, _ *asked, s *child) { go p.Stop(); synctest.Wait(); s.exit() }, ErrStopped},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newChanging(t, map[string]func(io.Writer) error{"s": func(w io.Writer) error {
					time.Sleep(time.Second)
					return text("changed")(w)
				}})
				before := openFDs(t)
				a, s := p.upgrade(PhaseReady)
				s.say(wire.Ready{Deltas: true})
				tt.end(p, a, s)
				<-a.answered
				if a.err == nil || !errors.Is(a.err, tt.want) && tt.want != nil {
					t.Errorf("Upgrade: %v, want %v", a.err, tt.want)
				}
				wantDoesNotHear[wire.Commit](s.farEnd)
				time.Sleep(time.Minute)
				synctest.Wait()
				wantDoesNotHear[wire.Delta](s.farEnd)
				wantNoMoreFDs(t, before)
				if name != "the service is ended" {
					p.wantServing()
					p.wantNextUpgradeWorks()
				}
			})
		})
	}
}

// TestSuccessorThatDoesNotApplyTheDelta in time is ended.
func TestSuccessorThatDoesNotApplyTheDelta(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newChanging(t, map[string]func(io.Writer) error{"s": text("changed")})
		a, s := p.upgrade(PhaseReady)
		s.say(wire.Ready{Deltas: true})
		p.wantExactly(deltaTimeout+secondLook, "aborted", func() bool { _, ok := hears[wire.Abort](s.farEnd); return ok })
		if e := a.wantFailed(PhaseReady); !errors.Is(e, ErrTimeout) {
			t.Errorf("%v, want ErrTimeout", e)
		}
		p.wantServing()
		p.wantNextUpgradeWorks()
	})
}

// ---- in the new process ----

// offers returns a manifest with a state of that name.
func offers(name string, delta bool) wire.Manifest {
	m := manifest
	m.Sockets = []wire.Socket{{Name: statePrefix + name, Kind: kindFile, State: &wire.State{Name: name, Delta: delta}}}
	return m
}

// deltaOf returns a message with what has changed, by name and difference.
func deltaOf(t *testing.T, parts ...string) received {
	t.Helper()
	var m received
	content := ""
	for i := 0; i < len(parts); i += 2 {
		m.States = append(m.States, wire.State{Name: parts[i], Size: int64(len(parts[i+1]))})
		content += parts[i+1]
	}
	m.files = []*os.File{memory(t, content)}
	return m
}

// TestSuccessorAsksForWhatItCanApply, if there is any.
func TestSuccessorAsksForWhatItCanApply(t *testing.T) {
	tests := map[string]struct {
		m     wire.Manifest
		apply string
		want  bool
	}{
		"both":                        {offers("s", true), "s", true},
		"nothing changes":             {offers("s", false), "s", false},
		"another changes":             {offers("t", true), "s", false},
		"it is not handled":           {offers("s", true), "", false},
		"there is none":               {manifest, "s", false},
		"a predecessor of old builds": {wire.Manifest{Version: 1, Generation: 2, Sockets: []wire.Socket{{Name: "s", Kind: kindFile}}}, "s", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newSuccessor(t, 2, Options{}, tt.m)
				must(t, p.OnStateDelta("forgotten", func([]byte) error { return nil }))
				must(t, p.OnStateDelta("forgotten", nil))
				if tt.apply != "" {
					must(t, p.OnStateDelta(tt.apply, func([]byte) error { return nil }))
				}
				p.readyToServe()
				if got := wantHears[wire.Ready](p.predecessor); got.Deltas != tt.want {
					t.Errorf("%+v, want %v", got, tt.want)
				}
				limit := commitTimeout + secondLook
				if tt.want {
					limit += deltaTimeout
				}
				p.wantExactly(limit, "given up", func() bool { return p.Err() != nil })
			})
		})
	}
}

// TestDeltaIsAppliedBeforeTheGatesOpen, however long that takes, and nothing
// that the predecessor says or suffers is acted on before.
func TestDeltaIsAppliedBeforeTheGatesOpen(t *testing.T) {
	for _, dies := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, offers("s", true))
			var applied []string
			var of []byte
			must(t, p.OnStateDelta("s", func(delta []byte) error {
				time.Sleep(deltaTimeout - time.Second)
				p.wantOpen(false)
				applied, of = append(applied, string(delta)), delta
				return nil
			}))
			ready := p.readyToServe()
			p.predecessor.say(deltaOf(t, "unknown", "ignored", "s", "changed", "more", ""))
			if dies {
				must(t, p.old.commit())
				p.predecessorDies()
			} else {
				time.Sleep(deltaTimeout / 2)
				must(t, p.old.commit())
				p.predecessor.say(wire.Commit{}) // too early
			}
			p.wantState(waiting)
			p.wantOpen(false)
			must(t, <-ready)
			if !slices.Equal(applied, []string{"changed"}) || cap(of) != len("changed") {
				t.Errorf("applied %q, room for %d", applied, cap(of))
			}
			p.wantOpen(true)
			if dies {
				p.wantState(serving)
			} else {
				p.wantState(onProbation)
				want := []wire.Message{wire.Ready{Deltas: true}, wire.Ready{}, wire.Serving{}}
				if got := p.predecessor.sent(); !slices.Equal(got, want) {
					t.Errorf("%+v, want %+v", got, want)
				}
			}
		})
	}
}

// TestWaitForCommitAfterADelta begins anew when it is applied.
func TestWaitForCommitAfterADelta(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newSuccessor(t, 2, Options{}, offers("s", true))
		must(t, p.OnStateDelta("s", func([]byte) error { time.Sleep(time.Second); return nil }))
		p.readyToServe()
		p.predecessor.say(deltaOf(t, "s", "changed"))
		p.wantExactly(time.Second+commitTimeout+secondLook, "given up", func() bool { return p.Err() != nil })
		p.wantEnd(stopped, ErrAborted)
	})
}

// TestDeltaThatCannotBeApplied: the predecessor is told why, and serves on.
func TestDeltaThatCannotBeApplied(t *testing.T) {
	broken := errors.New("what is this")
	good := func([]byte) error { return nil }
	unsealed, err := fd.NewMemory("delta")
	must(t, err)
	defer unsealed.Close()
	says := func(m received, change func(m *received)) received { change(&m); return m }
	tests := map[string]struct {
		apply func([]byte) error
		m     func(t *testing.T) received
		want  string
	}{
		"an error": {func([]byte) error { return broken }, nil, `state "s": its difference: what is this`},
		"a panic":  {func([]byte) error { panic("at the disco") }, nil, `state "s": its difference: it panicked: at the disco`},
		"no end":   {func([]byte) error { time.Sleep(time.Hour); return nil }, nil, `state "s": its difference: not applied in 30s: limit reached`},
		"no file":  {good, func(t *testing.T) received { return says(deltaOf(t), func(m *received) { m.files = nil }) }, "no descriptor was free"},
		"too few bytes": {good, func(t *testing.T) received {
			return says(deltaOf(t, "s", "changed"), func(m *received) { m.States[0].Size = 8 })
		}, `the predecessor says that "s" takes 8 bytes, there are 7`},
		"too many": {good, func(t *testing.T) received {
			return says(deltaOf(t, "s", "changed"), func(m *received) { m.States[0].Size = 5 })
		}, "the predecessor says nothing of the last 2 bytes"},
		"a negative number": {good, func(t *testing.T) received {
			return says(deltaOf(t, "s", "changed", "t", ""), func(m *received) { m.States[1].Size = -1 })
		}, `"t" takes -1 bytes`},
		"another checksum": {good, func(t *testing.T) received {
			return says(deltaOf(t, "s", "changed"), func(m *received) { m.States[0].Sum = 1 })
		}, "the predecessor says 00000001"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newSuccessor(t, 2, Options{}, offers("s", true))
				must(t, p.OnStateDelta("s", tt.apply))
				m := deltaOf(t, "s", "changed")
				if tt.m != nil {
					m = tt.m(t)
				}
				before := openFDs(t)
				ready := p.readyToServe()
				p.predecessor.say(m)
				err := <-ready
				wantText(t, err, tt.want)
				wantIs(t, err, ErrAborted)
				if got := wantHears[wire.Failed](p.predecessor); !strings.Contains(got.Text, tt.want) {
					t.Errorf("the predecessor is told %q", got.Text)
				}
				p.wantEnd(stopped, ErrAborted)
				p.wantOpen(false)
				wantPID(t, p.path, os.Getpid())
				p.wantOldPIDFile()
				wantNoMoreFDs(t, before-len(m.files))
			})
		})
	}
}

// TestStopWhileADeltaIsApplied does not wait for the callback.
func TestStopWhileADeltaIsApplied(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newSuccessor(t, 2, Options{}, offers("s", true))
		must(t, p.OnStateDelta("s", func([]byte) error { time.Sleep(time.Second); return nil }))
		ready := p.readyToServe()
		p.predecessor.say(deltaOf(t, "s", "changed"))
		p.Stop()
		wantIs(t, <-ready, ErrStopped)
		p.wantEnd(stopped, ErrStopped)
		wantHears[wire.Failed](p.predecessor)
		p.predecessor.wantClosed()
	})
}

// TestDeltaAtTheWrongTime is not applied, and its file is closed.
func TestDeltaAtTheWrongTime(t *testing.T) {
	for _, s := range []state{starting, onProbation, serving} {
		bubble(t, func(t *testing.T) {
			p := newSuccessor(t, 2, Options{}, offers("s", true))
			must(t, p.OnStateDelta("s", func([]byte) error { t.Error("called"); return nil }))
			p.bring(s)
			m := deltaOf(t, "s", "changed")
			before := openFDs(t)
			p.predecessor.say(m)
			p.wantState(s)
			wantNoMoreFDs(t, before-1)
		})
	}
}
