package upgradertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/go-handover/handover/internal/client"
	"github.com/go-handover/handover/internal/wire"
	"github.com/go-handover/handover/upgrader"
)

// control is the contact with a server that has a control socket.
type control struct {
	server *Server
	path   string
}

func (c *control) client() client.Client { return client.Client{Path: c.path} }

// status waits while nobody answers: the socket's path comes with the first
// process, behind a gate that opens when it serves. Who is killed while it
// answers leaves it to another one.
func (c *control) status(ctx context.Context) (upgrader.Status, error) {
	for {
		a, err := c.client().Status(ctx)
		switch {
		case err == nil && a.Result == wire.ResultDone:
			return a.Status, nil
		case err == nil:
			return upgrader.Status{}, fmt.Errorf("%s: %s", a.Result, a.Text)
		case ctx.Err() != nil:
			return upgrader.Status{}, because(ctx, err)
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, client.ErrNoAnswer):
			return upgrader.Status{}, err
		}
		if c.server.isOver() {
			return upgrader.Status{}, errOver
		}
		pause(ctx)
	}
}

func (c *control) serving(ctx context.Context) (int, error) {
	s, err := c.status(ctx)
	return self(s).PID, err
}

func (c *control) upgrade(ctx context.Context, probation func(pid int)) error {
	before, err := c.status(ctx)
	if err != nil {
		return err
	}
	a, err := c.client().Do(ctx, wire.VerbUpgrade, func(e upgrader.Event) error {
		if e.Kind == upgrader.EventPhase && e.Phase == upgrader.PhaseProbation {
			probation(e.Successor)
		}
		return nil
	})
	switch {
	case errors.Is(err, client.ErrNoAnswer):
		return c.settled(ctx, before.Last)
	case err != nil && ctx.Err() != nil:
		return because(ctx, err)
	case err != nil:
		return err
	}
	switch a.Result {
	case wire.ResultDone:
		return c.settled(ctx, before.Last)
	case wire.ResultFailed, wire.ResultRolledBack:
		if a.Status.Last != nil {
			return &VerdictError{*a.Status.Last}
		}
	}
	return fmt.Errorf("%s: %s", a.Result, a.Text)
}

// errSettled ends the watch of settled.
var errSettled = errors.New("there is a verdict")

// settled waits until a process serves, which takes the next upgrade, and returns
// the verdict that came after before. A new process is told that it is confirmed
// a little before who asked for the upgrade.
func (c *control) settled(ctx context.Context, before *upgrader.Verdict) error {
	var now upgrader.Status
	for {
		_, err := c.client().Watch(ctx, func(s upgrader.Status, _ json.RawMessage) error {
			if now = s; self(s).State == "serving" {
				return errSettled
			}
			return nil
		})
		switch {
		case errors.Is(err, errSettled):
			return newVerdict(before, now.Last)
		case ctx.Err() != nil:
			return because(ctx, err)
		case c.server.isOver():
			return errEnded
		}
		pause(ctx) // that one has been replaced, or has ended
	}
}

func newVerdict(before, after *upgrader.Verdict) error {
	switch {
	case after == nil, before != nil && after.Ended.Equal(before.Ended):
		return errors.New("the process that was asked has ended, and the one that serves knows of no upgrade")
	case after.Result != upgrader.Upgraded:
		return &VerdictError{*after}
	}
	return nil
}

func (c *control) stop(ctx context.Context) error { return c.do(ctx, wire.VerbStop) }

// do makes a request that is either carried out or not.
func (c *control) do(ctx context.Context, verb string) error {
	a, err := c.client().Do(ctx, verb, nil)
	switch {
	case err != nil:
		return fmt.Errorf("upgradertest: %s: %w", verb, err)
	case a.Result != wire.ResultDone:
		return fmt.Errorf("upgradertest: %s: %s: %s", verb, a.Result, a.Text)
	}
	return nil
}

// self is the process that has answered.
func self(s upgrader.Status) upgrader.Process {
	for _, p := range s.Processes {
		if p.Self {
			return p
		}
	}
	return upgrader.Process{}
}
