//go:build unix

package upgrader

import (
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"

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
