//go:build unix

package upgrader

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-handover/handover/internal/wire"
)

// bubble runs f at virtual time. At its end no goroutine may be left.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// bubbles runs f in many bubbles: what is decided by chance shows itself.
func bubbles(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	for range 100 {
		bubble(t, f)
		if t.Failed() {
			return
		}
	}
}

// ---- final states ----

func TestFinalStatesAnswerWithTheirReason(t *testing.T) {
	tests := map[string]struct {
		end  func(*testing.T) *process
		want error
	}{
		"upgraded": {func(t *testing.T) *process {
			p := newServing(t, Options{})
			p.wantNextUpgradeWorks()
			return p
		}, ErrUpgraded},
		"stopped": {func(t *testing.T) *process {
			p := newServing(t, Options{})
			p.Stop()
			return p
		}, ErrStopped},
		"stopped with its successor": {func(t *testing.T) *process {
			p := newServing(t, Options{})
			p.upgrade(PhaseProbation)
			p.Stop()
			return p
		}, ErrStopped},
		"aborted": {func(t *testing.T) *process {
			p := newSuccessor(t, 2, Options{}, manifest)
			p.predecessor.say(wire.Abort{})
			return p
		}, ErrAborted},
		"rolled back": {func(t *testing.T) *process {
			p := newSuccessor(t, 2, Options{}, manifest)
			p.bring(onProbation)
			p.predecessor.say(wire.Abort{})
			return p
		}, ErrRolledBack},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := tt.end(t)
				for range 100 { // the loop may still run, and answer itself
					p.wantFinal(tt.want)
				}
				for _, c := range p.children {
					c.exit()
				}
				if p.predecessor != nil {
					p.predecessorDies()
				}
				p.wantFinal(tt.want)
				if p.Stop(); !p.isHurried() {
					t.Error("Stop does not hurry")
				}
				p.Fail(errors.New("again"))
				if !errors.Is(p.Err(), tt.want) {
					t.Errorf("Err has become %v", p.Err())
				}
			})
		})
	}
}

// wantFinal asserts what each method answers.
func (p *process) wantFinal(want error) {
	p.t.Helper()
	ctx := p.t.Context()
	_, listen := p.Listen(ctx, "late", "tcp", "127.0.0.1:0")
	_, packet := p.ListenPacket(ctx, "late", "udp", "127.0.0.1:0")
	answers := map[string]error{
		"Err": p.Err(), "Ready": p.Ready(), "Upgrade": p.Upgrade(ctx),
		"Listen": listen, "ListenPacket": packet, "AddFile": p.AddFile("late", os.Stdin),
	}
	for method, err := range answers {
		if !errors.Is(err, want) {
			p.t.Fatalf("%s: %v, want %v", method, err, want)
		}
	}
	p.Progress("late")
}

func TestUpgradeBeforeReadyStartsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newFirst(t, Options{})
		p.ask().want(ErrNotReady)
		p.trigger(t.Context())
		synctest.Wait()
		must(t, p.Ready())
		p.wantServing()
		if len(p.children) > 0 {
			t.Error("a successor was started")
		}
	})
	for in, want := range map[state]error{starting: ErrNotReady, waiting: ErrNotReady, onProbation: ErrBusy} {
		t.Run(in.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newSuccessor(t, 2, Options{}, manifest)
				p.bring(in)
				p.ask().want(want)
				if len(p.children) > 0 {
					t.Error("a successor was started")
				}
			})
		})
	}
}

// TestTriggerAfterTheEndDoesNotBlock the signal loop.
func TestTriggerAfterTheEndDoesNotBlock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		p.Stop()
		p.trigger(t.Context())
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		p.trigger(ctx)
	})
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	tests := map[string]struct {
		o    Options
		text string
	}{
		"negative ready timeout":  {Options{ReadyTimeout: -1}, "ReadyTimeout"},
		"check without probation": {Options{Probation: -1, Check: func(context.Context) error { return nil }}, "Probation"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := New(tt.o)
			wantText(t, err, tt.text)
		})
	}
}

// ---- whatever happens ----

// words are all that another process can say.
var words = []wire.Message{
	wire.Hello{Version: wire.Version, PID: firstChild},
	wire.Hello{Version: 9},
	wire.Manifest{},
	wire.Progress{Text: "on its way"},
	wire.Ready{},
	wire.Failed{Text: "no"},
	wire.Commit{},
	wire.Abort{Reason: "no"},
	wire.Serving{},
	wire.Confirm{},
	wire.Stopping{},
	wire.Hurry{Generation: 1},
	wire.Hurry{Generation: 9},
	wire.Taken{ID: 1},
	wire.Refused{ID: 1},
	wire.Connection{ID: 1, Listener: "main"},
}

// pauses are around the limits.
var pauses = []time.Duration{
	1, secondLook - 1, stopTimeout, exitTimeout, servingTimeout, DefaultProbation, helloTimeout, DefaultReadyTimeout, time.Hour,
}

// walk is one history of a process: what others do to it, and what time does.
type walk struct {
	*process
	asked []*asked
}

// step decodes one byte into something that happens.
func (w *walk) step(b byte) {
	other := w.predecessor
	var c *child
	if len(w.children) > 0 {
		c = w.children[len(w.children)-1]
		if b&0x80 != 0 || other == nil {
			other = c.farEnd
		}
	}
	switch n := int(b & 0x7f); {
	case n < 60 && other != nil:
		other.say(words[n%len(words)])
	case n < 75:
		time.Sleep(pauses[n%len(pauses)])
	case n < 80:
		w.asked = append(w.asked, w.ask())
	case n < 83 && len(w.asked) > 0:
		w.asked[len(w.asked)-1].cancel(nil)
	case n < 86 && c != nil:
		c.exit()
	case n < 89 && other != nil:
		other.end()
	case n < 91 && other != nil:
		other.breakWith(&wire.UnknownTypeError{Type: "later"})
	case n < 93 && c != nil:
		c.deafen()
	case n < 95 && c != nil:
		c.immortal.Store(true)
	case n < 100:
		go func() { _ = w.Ready() }()
	case n < 102:
		go w.Stop()
	case n < 104:
		go w.Fail(errors.New("no"))
	case n < 106:
		go w.end(stopRequest{service: true})
	case n < 108 && w.predecessor != nil:
		w.predecessorDies()
	case n >= 108:
		w.goOn(c)
	}
	synctest.Wait()
}

// goOn is what happens next if all goes well.
func (w *walk) goOn(c *child) {
	switch s := w.state(); {
	case s == starting:
		go func() { _ = w.Ready() }()
	case s == waiting:
		_ = w.old.commit() // an earlier word may have come instead
		w.predecessor.say(wire.Commit{})
	case s == onProbation:
		w.predecessor.say(wire.Confirm{})
		_ = w.old.confirm()
	case s == serving:
		w.asked = append(w.asked, w.ask())
	case s == upgrading && c != nil:
		next := map[Phase]wire.Message{PhaseHello: c.hello(), PhaseReady: wire.Ready{}, PhaseCommit: wire.Serving{}}
		c.say(next[c.phase()])
	case s == probation:
		time.Sleep(DefaultProbation + secondLook)
	}
}

// check asserts what is true in each state, whatever has led there.
func (w *walk) check() {
	w.t.Helper()
	s := w.state()
	if s.final() && w.Err() == nil { // its last word before that is for one that is deaf
		time.Sleep(wire.SendTimeout)
		synctest.Wait()
	}
	if (w.Err() != nil) != s.final() {
		w.t.Fatalf("while %s, Err is %v\n%s", s, w.Err(), w)
	}
	open := map[state]bool{serving: true, upgrading: true, onProbation: true}
	closed := map[state]bool{starting: true, waiting: true, probation: true, draining: true}
	if open[s] && !w.isOpen() || closed[s] && w.isOpen() {
		w.t.Fatalf("while %s, the gate is open: %v\n%s", s, w.isOpen(), w)
	}
	if s == serving && w.predecessor == nil {
		wantPID(w.t, w.path, os.Getpid())
	}
}

// FuzzRun: no history makes an illegal move, which would panic, leaves a
// goroutine, a channel or a caller behind, or breaks what is true in a state.
func FuzzRun(f *testing.F) {
	f.Add(false, []byte("KO\x00\x04\x08AAAA"))
	f.Add(true, []byte("\x5f\x06\x09K"))
	f.Add(true, []byte("aXxxx\xdcx\xaa")) // deaf, and then it stops both
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 200 {
		history := make([]byte, 5+random.IntN(40))
		for i := range history {
			history[i] = byte(random.Uint32())
		}
		f.Add(i%2 == 0, history)
	}
	f.Fuzz(func(t *testing.T, succeeds bool, history []byte) {
		if len(history) > 100 {
			return
		}
		bubble(t, func(t *testing.T) {
			w := &walk{}
			o := Options{DrainTimeout: time.Minute, MaxDraining: 1}
			if succeeds {
				w.process = newSuccessor(t, 3, o, manifest)
			} else {
				w.process = newServing(t, o)
			}
			for _, b := range history {
				w.step(b)
				w.check()
			}
			w.launches.Lock()
			children := slices.Clone(w.children)
			w.launches.Unlock()
			for _, c := range children {
				c.end() // or a deaf one would block run for 5 s at each word
			}
			time.Sleep(24 * time.Hour)
			synctest.Wait()
			w.check()
			for i, a := range w.asked {
				if !a.isAnswered() {
					t.Errorf("call %d of Upgrade has no answer after a day\n%s", i, w)
				}
			}
		})
	})
}
