package upgradertest

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/proctest/program"
)

const (
	politeLimit = 10 * time.Second // at the end of a test: asked to stop → asked to hurry → killed
	helperLimit = time.Second      // the last generation has ended → so have its helpers
	quitLimit   = 2 * time.Second  // asked for its goroutines → killed
	killLimit   = 5 * time.Second  // killed → gone
)

// Stop asks the server to stop, as an operator does, and waits until every
// process of it has ended. The test fails, and goes on, if one is left: an older
// generation that still drains at the end of Spec.Timeout, or a process that the
// server has started and not ended. It is killed. A server that has ended already
// is stopped.
func (s *Server) Stop() {
	s.tb.Helper()
	ctx, cancel := s.limit(context.Background())
	defer cancel()
	if !s.isOver() {
		if err := s.contact.stop(ctx); err != nil && !s.isOver() {
			s.tb.Errorf("upgradertest: stop: %v", err)
			return // the end of the test does it
		}
	}
	s.drained(ctx)
	s.sweep()
	s.over = true
}

// Wait waits until every process of the server has ended, by itself or because
// of a signal. The test fails, and goes on, if one is left at the end of
// Spec.Timeout, or is left behind by the server. It is killed.
func (s *Server) Wait() {
	s.tb.Helper()
	ctx, cancel := s.limit(context.Background())
	defer cancel()
	s.drained(ctx)
	s.sweep()
	s.over = true
}

// drained returns when no generation of the server is there, or ctx is done.
func (s *Server) drained(ctx context.Context) {
	for !s.isOver() && len(s.generations()) > 0 {
		if !pause(ctx) {
			return
		}
	}
}

// end leaves nothing behind. A draining process that is asked to stop hurries.
func (s *Server) end() {
	s.tb.Helper()
	if !s.over {
		for range 2 {
			for _, pid := range s.generations() {
				program.Ask(pid)
			}
			ctx, cancel := context.WithTimeout(context.Background(), politeLimit)
			s.drained(ctx)
			cancel()
		}
		s.sweep()
	}
	if strings.Contains(s.Output(), "WARNING: DATA RACE") {
		s.tb.Error("upgradertest: the server has a data race: see its output")
	}
	if s.tb.Failed() {
		s.tb.Logf("upgradertest: output of the server:\n%s", s.Output())
	}
}

// sweep kills what is left, and says so.
func (s *Server) sweep() {
	s.tb.Helper()
	if s.isOverWithin(helperLimit) {
		return
	}
	generations := s.generations()
	for _, pid := range s.program.PIDs(generations...) {
		what := "was started by the server and left behind"
		if slices.Contains(generations, pid) {
			what = "of the server has not ended"
		}
		s.tb.Errorf("upgradertest: process %d (%s) %s: killed", pid, program.CommandLine(pid), what)
	}
	s.kill()
}

// kill lets no process live. A generation prints its goroutines first.
func (s *Server) kill() {
	s.tb.Helper()
	for _, pid := range s.generations() {
		_ = program.Signal(pid, syscall.SIGQUIT) // it may just have ended
	}
	ctx, cancel := context.WithTimeout(context.Background(), quitLimit)
	defer cancel()
	s.drained(ctx)
	for _, pid := range s.program.PIDs(s.known()...) {
		_ = program.Signal(pid, syscall.SIGKILL) // the same
	}
	if !s.isOverWithin(killLimit) {
		s.tb.Error("upgradertest: a process that is not known has the server's output open: " +
			"does the server give what it starts another environment than its own?")
	}
	s.over = true
}

func (s *Server) isOverWithin(limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for !s.isOver() {
		if !pause(ctx) {
			return false
		}
	}
	return true
}

// isOver reports that no process of the server is there.
func (s *Server) isOver() bool {
	select {
	case <-s.program.Gone():
		return len(s.program.PIDs(s.known()...)) == 0
	default:
		return false
	}
}

// generations returns the processes of the server that are alive, without what
// it has started besides its successors.
func (s *Server) generations() []int {
	known := s.known()
	return slices.DeleteFunc(s.program.PIDs(known...), func(pid int) bool {
		return !slices.Contains(known, pid) && program.Executable(pid) != s.path
	})
}

// known are the pids of generations that this test has heard of.
func (s *Server) known() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]int{s.program.First.Pid}, s.seen...)
}
