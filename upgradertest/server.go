package upgradertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest/program"
	"github.com/go-handover/handover/upgrader"
)

// DefaultTimeout is Spec's, and the limit of the waits for a Load.
const DefaultTimeout = 30 * time.Second

// Spec says which server to start, and how. It needs a ControlSocket or a
// PIDFile: they are how a test learns what the server does.
type Spec struct {
	// Path is the binary. Start runs a copy of it, which Replace replaces. Empty:
	// the test binary, which then has to call Main.
	Path string

	Args []string // without the program's name
	Env  []string // in addition to the test's
	Dir  string   // where it runs; empty: where the test does

	// ControlSocket is the server's Options.ControlSocket, and PIDFile its
	// Options.PIDFile: Args or Env tell the server the same. They are relative to
	// Dir, as they are for the server. With a ControlSocket everything here works.
	// With a PIDFile alone the server is upgraded by SIGUSR1, an error does not say
	// why, and what needs the socket fails.
	ControlSocket string
	PIDFile       string

	// Timeout is the limit of each wait but for the verdict on an upgrade, to which
	// the server has limits of its own; 0: DefaultTimeout.
	Timeout time.Duration
}

// Server is a running server with all its generations.
type Server struct {
	tb      testing.TB
	spec    Spec
	path    string // of the copy
	program *program.Process
	contact contact
	over    bool // nothing is left of it

	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed and replaced at each line
	seen  []int         // pids that were generations of the server
}

// Start starts the server, and waits until it serves. At the end of the test all
// its generations are stopped. One that has not ended then, or a process that
// the server has started and left behind, is killed and fails the test; so does
// a report of the race detector.
func Start(tb testing.TB, spec Spec) *Server {
	tb.Helper()
	if !supported {
		tb.Skip("upgradertest: a server cannot be upgraded on this system")
	}
	s := &Server{tb: tb, spec: spec, more: make(chan struct{})}
	if s.spec.Timeout == 0 {
		s.spec.Timeout = DefaultTimeout
	}
	s.contact = s.contactOf(spec)
	cmd := s.command()
	var err error
	if s.program, err = program.Start(cmd, nil, s.add); err != nil {
		tb.Fatalf("upgradertest: start %s: %v", cmd.Path, err)
	}
	tb.Cleanup(s.end)
	ctx, cancel := s.limit(context.Background())
	defer cancel()
	if err := s.await(ctx); err != nil {
		words := s.lastWords()
		s.kill()
		tb.Fatalf("upgradertest: the server does not serve: %v; %s", err, words)
	}
	return s
}

// command runs a copy of the binary.
func (s *Server) command() *exec.Cmd {
	s.tb.Helper()
	from, env := s.spec.Path, s.spec.Env
	if from == "" {
		if !mainCalled {
			s.tb.Fatal("upgradertest: no Path in Spec: set it to what Build returns, " +
				"or let the test binary be the server, by Main in TestMain")
		}
		env = append(slices.Clip(env), mainVariable+"=1")
		var err error
		if from, err = os.Executable(); err != nil {
			s.tb.Fatalf("upgradertest: %v", err)
		}
	}
	dir, err := filepath.EvalSymlinks(s.tb.TempDir()) // as /proc says it
	s.path = filepath.Join(dir, strings.TrimSuffix(filepath.Base(from), ".test"))
	if err := errors.Join(err, program.Replace(s.path, from)); err != nil {
		s.tb.Fatalf("upgradertest: %v", err)
	}
	cmd := exec.Command(s.path, s.spec.Args...) //nolint:noctx // it ends with the test, politely
	cmd.Dir = s.spec.Dir
	cmd.Env = os.Environ()
	if raceFlags != nil {
		// The race detector lets a process sleep for a second when it exits, in which
		// a request is answered that would be lost.
		cmd.Env = append(cmd.Env, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	}
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// await returns when a process of this server serves.
func (s *Server) await(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.program.Exited():
			cancel(errOver)
		case <-ctx.Done():
		}
	}()
	pid, err := s.contact.serving(ctx)
	if errors.Is(err, errOver) {
		<-s.program.Exited()
		s.isOverWithin(helperLimit) // all that it has printed is read
		return fmt.Errorf("it has ended: %s", s.program.End())
	}
	if err != nil {
		return err
	}
	if !s.program.Has(pid) {
		return fmt.Errorf("process %d does, which this test has not started: does another server use the same path?", pid)
	}
	s.note(pid)
	return nil
}

// limit is the limit of one wait.
func (s *Server) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.spec.Timeout, fmt.Errorf("not within %v (Spec.Timeout)", s.spec.Timeout))
}

func (s *Server) note(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.seen, pid) {
		s.seen = append(s.seen, pid)
	}
}

// PID returns the pid of the process that is the server: that the pidfile names,
// or that answers on the control socket. It waits while there is none for the
// moment.
func (s *Server) PID() int {
	s.tb.Helper()
	pid, err := s.serving(context.Background())
	if err != nil {
		s.tb.Fatal(err)
	}
	return pid
}

func (s *Server) serving(ctx context.Context) (int, error) {
	ctx, cancel := s.limit(ctx)
	defer cancel()
	pid, err := s.contact.serving(ctx)
	if err != nil {
		return 0, fmt.Errorf("upgradertest: no process serves: %w; %s", err, s.lastWords())
	}
	s.note(pid)
	return pid, nil
}

// Status returns what the process that is the server knows of the service. It
// needs Spec.ControlSocket.
func (s *Server) Status() upgrader.Status {
	s.tb.Helper()
	c, err := s.control("Status")
	if err != nil {
		s.tb.Fatal(err)
	}
	ctx, cancel := s.limit(context.Background())
	defer cancel()
	status, err := c.status(ctx)
	if err != nil {
		s.tb.Fatalf("upgradertest: status: %v; %s", err, s.lastWords())
	}
	return status
}

// control is for what needs the socket.
func (s *Server) control(what string) (*control, error) {
	if c, ok := s.contact.(*control); ok {
		return c, nil
	}
	return nil, fmt.Errorf("upgradertest: %s needs Spec.ControlSocket: let the server set Options.ControlSocket to the same path", what)
}

// Generation returns that of the process that is the server. It needs
// Spec.ControlSocket.
func (s *Server) Generation() int {
	s.tb.Helper()
	return self(s.Status()).Generation
}

// Addr returns the address of the socket of this name, as it is bound. It needs
// Spec.ControlSocket.
func (s *Server) Addr(name string) string {
	s.tb.Helper()
	var names []string
	for _, socket := range s.Status().Sockets {
		if socket.Name == name {
			return socket.Address
		}
		names = append(names, socket.Name)
	}
	s.tb.Fatalf("upgradertest: the server has no socket %q, but %q", name, names)
	return ""
}

// Replace puts a copy of the binary at path in the place of the server's, by
// rename, as a deploy does. The next upgrade starts it, if the server does not
// set Options.Executable.
func (s *Server) Replace(path string) {
	s.tb.Helper()
	if err := program.Replace(s.path, path); err != nil {
		s.tb.Fatalf("upgradertest: replace: %v", err)
	}
}
