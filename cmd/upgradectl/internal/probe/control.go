package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	control "github.com/go-handover/handover/internal/client"
	"github.com/go-handover/handover/internal/wire"
	"github.com/go-handover/handover/upgrader"
)

const (
	controlTimeout = 5 * time.Second        // until the first status
	controlPause   = 100 * time.Millisecond // between two attempts to reach the next process
)

// watcher follows a server by its control socket, from process to process.
type watcher struct {
	client control.Client
	probe  *probe

	first   chan struct{} // closed at the first status
	known   map[int]bool  // pids; nil: there was no status yet
	verdict verdict       // the last one that is known
}

// verdict tells one from another: both processes keep one of an upgrade.
type verdict struct {
	result upgrader.Result
	pid    int
	ended  time.Time // where there is no pid
}

var errRefused = errors.New("the control socket refuses")

// follow marks what the control socket tells, until the function that it
// returns is called. That one tells why marks may be missing.
func (o *options) follow(ctx context.Context, p *probe) (unfollow func() error, err error) {
	if o.socket == "" {
		return func() error { return nil }, nil
	}
	p.told = true
	w := &watcher{client: control.Client{Path: o.socket}, probe: p, first: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // the last requests are in flight after an interrupt
	ended := make(chan error, 1)
	go func() { ended <- w.run(ctx) }()
	unfollow = func() error {
		cancel()
		return <-ended
	}
	select {
	case <-w.first:
		return unfollow, nil
	case err = <-ended:
		cancel()
		return nil, err // it names the socket
	case <-time.After(controlTimeout):
		_ = unfollow() // it says that it was called
		return nil, fmt.Errorf("-socket %s: no status in %v", o.socket, controlTimeout)
	}
}

// run ends with ctx, or when there is nobody to follow.
func (w *watcher) run(ctx context.Context) error {
	for {
		err := w.session(ctx)
		if w.known == nil || errors.Is(err, errRefused) {
			return err
		}
		// Whoever serves next answers on the same path.
		select {
		case <-time.After(controlPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// session follows one process.
func (w *watcher) session(ctx context.Context) error {
	a, err := w.client.Watch(ctx, func(s upgrader.Status, _ json.RawMessage) error {
		w.see(s)
		return nil
	})
	if err == nil && a.Result == wire.ResultRefused {
		return fmt.Errorf("%w: %s", errRefused, a.Text)
	}
	return err // nil: the process goes
}

// see marks what is new in a status.
func (w *watcher) see(s upgrader.Status) {
	begins := w.known == nil
	if begins {
		w.known = make(map[int]bool)
		defer close(w.first)
	}
	for _, p := range s.Processes {
		if w.known[p.PID] || !begins && p.State != "on probation" && p.State != "serving" {
			continue
		}
		w.known[p.PID] = true
		if !begins {
			w.probe.mark(time.Now(), markUpgrade, fmt.Sprintf("process %d serves", p.PID))
		}
	}
	if v, is := latestVerdict(s.Last); is && v != w.verdict {
		w.verdict = v
		if !begins {
			w.probe.mark(s.Last.Ended, kindOf(v.result), s.Last.String())
		}
	}
}

func latestVerdict(last *upgrader.Verdict) (v verdict, is bool) {
	if last == nil {
		return v, false
	}
	v = verdict{result: last.Result, pid: last.PID}
	if v.pid == 0 {
		v.ended = last.Ended.Round(0)
	}
	return v, true
}

func kindOf(r upgrader.Result) markKind {
	switch r {
	case upgrader.Upgraded:
		return markConfirmed
	case upgrader.RolledBack:
		return markRolledBack
	default:
		return markFailed
	}
}
