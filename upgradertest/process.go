package upgradertest

import (
	"context"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/proctest/program"
)

// Signal sends sig to the process that is the server.
func (s *Server) Signal(sig syscall.Signal) {
	s.tb.Helper()
	s.signal(s.PID(), sig)
}

func (s *Server) signal(pid int, sig syscall.Signal) {
	s.tb.Helper()
	if err := program.Signal(pid, sig); err != nil {
		s.tb.Fatalf("upgradertest: signal %v to process %d: %v", sig, pid, err)
	}
}

// Crash kills the process that is the server, waits until it has ended and
// returns its pid. During probation that is the new process, and the old one
// takes the service back. Otherwise nobody is left to serve. It may be called
// while an Upgrade waits in another goroutine.
func (s *Server) Crash() (pid int) {
	s.tb.Helper()
	pid = s.PID()
	s.Kill(pid)
	return pid
}

// Kill kills a process of the server, and waits until it has ended.
func (s *Server) Kill(pid int) {
	s.tb.Helper()
	if !s.program.Has(pid) {
		s.tb.Fatalf("upgradertest: process %d is not there, or not this server's", pid)
	}
	s.signal(pid, syscall.SIGKILL)
	s.WaitExit(pid)
}

// WaitExit waits until the process with this pid has ended, which an old one
// does when it has drained. It returns at once if there is no such process.
func (s *Server) WaitExit(pid int) {
	s.tb.Helper()
	ctx, cancel := s.limit(context.Background())
	defer cancel()
	for s.program.Has(pid) {
		if !pause(ctx) {
			s.tb.Fatalf("upgradertest: process %d has not ended: %v; %s", pid, context.Cause(ctx), s.lastWords())
		}
	}
}

// ExitCode waits until the first process has ended, and returns its exit code;
// -1 stands for a signal. The code of another one is known to its predecessor
// alone: if it was ended in an upgrade, the error of Upgrade has it.
func (s *Server) ExitCode() int {
	s.tb.Helper()
	select {
	case <-s.program.Exited():
	case <-time.After(s.spec.Timeout):
		s.tb.Fatalf("upgradertest: the first process, %d, has not ended within %v (Spec.Timeout); %s",
			s.program.First.Pid, s.spec.Timeout, s.lastWords())
	}
	return s.program.Code()
}
