//go:build unix

package exampletest

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
	"github.com/go-handover/handover/upgradertest"
)

// Upgrades is how often a test replaces its example.
const Upgrades = 20

// patience is the limit of everything that is waited for.
const patience = 30 * time.Second

// Service is an example that runs. The methods are those of proctest.Server,
// for the test's own goroutine.
type Service struct {
	*proctest.Server
	t *testing.T
}

// Start builds and starts the example of this name, with a short probation,
// because that is what an upgrade takes.
func Start(t *testing.T, name string, flags ...string) *Service {
	t.Helper()
	s := proctest.Exec(t, Build(t, name), append([]string{"-probation", "50ms"}, flags...)...)
	s.Wait(proctest.Reached(1, "serving"))
	return &Service{s, t}
}

// Build builds the example of this name.
func Build(t *testing.T, name string) (path string) {
	t.Helper()
	return upgradertest.Build(t, "github.com/go-handover/handover/examples/"+name)
}

// Addr returns the address on which the service listens.
func (s *Service) Addr() string {
	s.t.Helper()
	e := s.Wait(logged("listening", s.First.Pid))
	addr, ok := e.Fields["addr"].(string)
	if !ok {
		s.t.Fatalf("no address in %s", e.Line)
	}
	return addr
}

// logged matches a record of log/slog by the process with this pid.
func logged(message string, pid int) proctest.Match {
	return proctest.Match{
		Name: fmt.Sprintf("process %d logs %q", pid, message),
		Is:   func(e proctest.Event) bool { return e.Fields["msg"] == message && e.PID == pid },
	}
}

// Drained waits until the process with this pid has nothing left to answer.
func (s *Service) Drained(pid int) {
	s.t.Helper()
	s.Wait(logged("drained", pid))
}

// Sum adds up a figure that each process has logged when it was drained.
func (s *Service) Sum(figure string) (sum int64) {
	for _, e := range s.Events() {
		if n, ok := e.Fields[figure].(float64); ok {
			sum += int64(n)
		}
	}
	return sum
}

// ReplaceUnder replaces the service again and again. Each time it waits until
// the new process has answered one of the clients, and until the old one has
// drained, with all the clients at work.
func (s *Service) ReplaceUnder(c *Clients) {
	s.t.Helper()
	s.answersTo(c, 1)
	for i := range Upgrades {
		old := s.PID()
		s.Upgrade()
		s.answersTo(c, i+2)
		s.Drained(old)
	}
	if code := s.ExitCode(); code != 0 {
		s.t.Errorf("the first process: exit code %d, want 0", code)
	}
}

func (s *Service) answersTo(c *Clients, generation int) {
	s.t.Helper()
	select {
	case <-c.first(generation):
	case <-time.After(patience):
		s.t.Fatalf("generation %d has not answered in %v", generation, patience)
	}
}

// Ends stops the service politely. All processes are to end by themselves,
// and nothing is to be in the log that worries an operator, nor a panic or a
// data race.
func (s *Service) Ends() {
	s.t.Helper()
	pid := s.PID()
	s.Signal(pid, syscall.SIGTERM)
	s.Drained(pid)
	s.WaitGone()
	for _, e := range s.Events() {
		if e.Fields["level"] != "INFO" {
			s.t.Errorf("logged: %s", e.Line)
		}
	}
}
