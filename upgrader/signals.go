package upgrader

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
)

// Signals says which signals do what. The zero value is SIGUSR1 for Upgrade,
// and SIGINT and SIGTERM for Stop. An empty, non-nil slice is none.
type Signals struct {
	Upgrade []os.Signal
	Stop    []os.Signal
}

// HandleSignals lets signals drive u until ctx is done, and returns at once.
// It is opt-in: without it a program calls Upgrade and Stop itself. Call it
// before Ready, because a trigger that arrives before is lost.
//
// An upgrade signal asks for an upgrade and does not wait for it; while one is
// under way, further ones are answered busy, in the debug log. A stop signal
// stops the service politely, whichever of its processes receives it: during
// an upgrade both processes stop. In a draining or stopped process it means
// hurry, and concerns that process alone.
//
// The error is one of usage: a signal that is there twice.
func (u *Upgrader) HandleSignals(ctx context.Context, s Signals) error {
	if s.Upgrade == nil {
		s.Upgrade = defaultUpgradeSignals
	}
	if s.Stop == nil {
		s.Stop = defaultStopSignals
	}
	for i, sig := range slices.Concat(s.Upgrade, s.Stop) {
		if slices.Index(slices.Concat(s.Upgrade, s.Stop), sig) != i {
			return fmt.Errorf("upgrader: signal %v is there twice: want it once, for Upgrade or for Stop", sig)
		}
	}
	u.triggers.Store(&s.Upgrade)
	upgrades, stops := notify(s.Upgrade), notify(s.Stop)
	go func() {
		defer signal.Stop(upgrades)
		defer signal.Stop(stops)
		for {
			select {
			case <-upgrades:
				u.trigger(ctx)
			case <-stops:
				u.end(stopRequest{service: true})
			case <-ctx.Done():
				return
			}
		}
	}()
	return nil
}

// notify returns a channel of its own with room for one signal: a second one
// that finds it full has its wish already, and a storm of one kind cannot
// crowd out the other.
func notify(sigs []os.Signal) chan os.Signal {
	c := make(chan os.Signal, 1)
	if len(sigs) > 0 { // none would mean all
		signal.Notify(c, sigs...)
	}
	return c
}
