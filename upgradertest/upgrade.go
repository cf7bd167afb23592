package upgradertest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-handover/handover/internal/wire"
	"github.com/go-handover/handover/upgrader"
)

// upgradeLimit is more than the default limits of an upgrade together.
const upgradeLimit = 90 * time.Second

// A VerdictError says that an upgrade has ended without a new process. The old
// one serves.
type VerdictError struct {
	// Verdict is the server's. Without a control socket it has a Result only.
	upgrader.Verdict
}

func (e *VerdictError) Error() string {
	var b strings.Builder
	b.WriteString("upgradertest: ")
	b.WriteString(e.String())
	if e.Phase != "" {
		fmt.Fprintf(&b, "; in phase %s", e.Phase)
	}
	if e.Text != "" {
		fmt.Fprintf(&b, "; it said: %s", e.Text)
	}
	if e.Reason == "" {
		b.WriteString("; the server's output says why")
	}
	return b.String()
}

// Attempt is an upgrade that was begun.
type Attempt struct {
	server  *Server
	old     int
	began   chan struct{} // closed when the new process serves, or there is a verdict
	judged  chan struct{} // closed when there is a verdict
	verdict error         // after judged

	successor int // after began; 0: none has served
}

// Upgrade upgrades the server, and waits for the verdict. On nil the new process
// serves and is confirmed, and the old one drains. The error is a *VerdictError
// if the old process serves on, or again; any other if there was no verdict. It
// does not fail the test, and may be called from any goroutine.
//
// The end of ctx ends the wait, and not the upgrade. So does a limit of 90 s,
// which is more than the default limits of an upgrade together. A test that lets
// an upgrade fail by ReadyTimeout, or wants no wait of 5 s for each that
// succeeds, makes the server's Options.ReadyTimeout and Probation shorter.
func (s *Server) Upgrade(ctx context.Context) error {
	a, err := s.Begin(ctx)
	if err != nil {
		return err
	}
	return a.Wait()
}

// Begin upgrades the server, and returns as soon as the new process serves: it is
// on probation. If the upgrade has ended before that, it returns the error that
// Upgrade does. Ctx bounds the whole Attempt, which the caller ends by Wait.
func (s *Server) Begin(ctx context.Context) (*Attempt, error) {
	old, err := s.serving(ctx)
	if err != nil {
		return nil, err
	}
	a := &Attempt{server: s, old: old, began: make(chan struct{}), judged: make(chan struct{})}
	go a.run(ctx)
	select {
	case <-a.began:
		return a, nil
	case <-a.judged:
	}
	select {
	case <-a.began: // both
		return a, nil
	default:
		return nil, a.verdict
	}
}

// run ends with the verdict.
func (a *Attempt) run(ctx context.Context) {
	defer close(a.judged)
	ctx, cancel := context.WithTimeoutCause(ctx, upgradeLimit, fmt.Errorf("no verdict within %v", upgradeLimit))
	defer cancel()
	s := a.server
	err := s.contact.upgrade(ctx, func(pid int) {
		a.successor = pid
		s.note(pid)
		close(a.began)
	})
	switch failed := (*VerdictError)(nil); {
	case errors.As(err, &failed):
		a.verdict = failed
	case err != nil:
		a.verdict = fmt.Errorf("upgradertest: upgrade of process %d: %w; %s", a.old, err, s.lastWords())
	}
}

// PIDs returns those of the old and of the new process.
func (a *Attempt) PIDs() (old, successor int) { return a.old, a.successor }

// Wait waits for the verdict, and returns what Upgrade does. It may be called
// from any goroutine, and again.
func (a *Attempt) Wait() error {
	<-a.judged
	return a.verdict
}

// Rollback ends probation: the old process is to take the service back. The
// Attempt's Wait returns when it has. It needs Spec.ControlSocket. It does not
// fail the test for an answer that is not yes, and may be called from any
// goroutine.
func (s *Server) Rollback(ctx context.Context) error {
	return s.order(ctx, "Rollback", wire.VerbRollback)
}

// Confirm ends probation: there is no way back. The Attempt's Wait returns when
// that is so. As Rollback it needs Spec.ControlSocket.
func (s *Server) Confirm(ctx context.Context) error {
	return s.order(ctx, "Confirm", wire.VerbConfirm)
}

func (s *Server) order(ctx context.Context, what, verb string) error {
	c, err := s.control(what)
	if err != nil {
		return err
	}
	ctx, cancel := s.limit(ctx)
	defer cancel()
	return c.do(ctx, verb)
}
