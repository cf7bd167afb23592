package upgradertest

import (
	"context"
	"fmt"
	"syscall"

	"github.com/go-handover/handover/internal/client"
	"github.com/go-handover/handover/internal/proctest/program"
	"github.com/go-handover/handover/upgrader"
)

// signals is the contact with a server that has a pidfile and no control socket.
type signals struct {
	server *Server
	path   string
}

// serving waits for a pidfile that names a process of this server: until then a
// file of an earlier one may lie there.
func (s *signals) serving(ctx context.Context) (int, error) {
	for {
		pid, err := client.Named(s.path)
		if err == nil && s.server.program.Has(pid) {
			return pid, nil
		}
		if err == nil {
			err = fmt.Errorf("%s names process %d, which is not there, or not this server's", s.path, pid)
		}
		if s.server.isOver() {
			return 0, errOver
		}
		if !pause(ctx) {
			return 0, because(ctx, err)
		}
	}
}

func (s *signals) upgrade(ctx context.Context, probation func(pid int)) error {
	pid, err := s.serving(ctx)
	if err != nil {
		return err
	}
	w, err := client.PIDFileAt(s.path).Witness()
	if err != nil {
		return err
	}
	if err := program.Signal(pid, upgradeSignal); err != nil {
		return err
	}
	for committed := false; ; {
		over := s.server.isOver() // asked first: what ends after this is seen the next time
		switch sight, pid := w.Look(s.server.program.Has); {
		case sight == client.Upgraded && !committed:
			probation(pid)
			return nil
		case sight == client.Upgraded:
			return nil
		case sight == client.Failed:
			return &VerdictError{upgrader.Verdict{Result: upgrader.Failed}}
		case sight == client.RolledBack:
			return &VerdictError{upgrader.Verdict{Result: upgrader.RolledBack}}
		case sight == client.Committed && !committed:
			committed = true
			probation(pid)
		}
		if over {
			return errEnded
		}
		if !pause(ctx) {
			return context.Cause(ctx)
		}
	}
}

func (s *signals) stop(ctx context.Context) error {
	pid, err := s.serving(ctx)
	if err != nil {
		return err
	}
	return program.Signal(pid, syscall.SIGTERM)
}
