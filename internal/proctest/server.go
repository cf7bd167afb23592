//go:build unix

package proctest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest/program"
)

// patience is the limit of everything that is waited for.
const patience = 30 * time.Second

// Server is a running cmd/demo, or a program with the same flags, with all its
// generations. Its methods fail the test rather than return an error, so they
// are for the test's own goroutine.
type Server struct {
	Path    string // of the binary; replace it to upgrade to another one
	PIDFile string
	First   *os.Process

	t       testing.TB
	program *program.Process

	mu     sync.Mutex
	events []Event
	more   chan struct{} // closed and replaced at each event
}

// Place is where processes run: a network namespace, for example. Do calls f
// there. Nil is where the test runs.
type Place interface{ Do(f func() error) error }

func startIn(place Place, cmd *exec.Cmd) error {
	if place == nil {
		return cmd.Start()
	}
	return place.Do(cmd.Start)
}

// Start is Spawn, and waits until the first process serves.
func Start(t testing.TB, path string, args ...string) *Server {
	t.Helper()
	return StartIn(t, nil, path, args...)
}

// StartIn is Start in a place. Successors inherit it.
func StartIn(t testing.TB, place Place, path string, args ...string) *Server {
	t.Helper()
	s := execIn(t, place, path, logJSON(args)...)
	s.Wait(Reached(1, "serving"))
	return s
}

// Spawn is Exec, with a log in JSON.
func Spawn(t testing.TB, path string, args ...string) *Server {
	t.Helper()
	return Exec(t, path, logJSON(args)...)
}

func logJSON(args []string) []string { return append([]string{"-log", "json"}, args...) }

// Exec starts the binary at path, which logs JSON. Where args do not say
// otherwise it listens on a free port of the loopback interface and has a
// pidfile of its own. The log of all generations is read, and printed if the
// test fails. At the end of the test the server is stopped; a process that
// survives that is killed, and the test fails.
func Exec(t testing.TB, path string, args ...string) *Server {
	t.Helper()
	return execIn(t, nil, path, args...)
}

func execIn(t testing.TB, place Place, path string, args ...string) *Server {
	t.Helper()
	s := &Server{Path: path, t: t, more: make(chan struct{})}
	if i := slices.Index(args, "-pidfile"); i >= 0 {
		s.PIDFile = args[i+1]
	} else {
		s.PIDFile = filepath.Join(t.TempDir(), "app.pid")
		args = append([]string{"-pidfile", s.PIDFile}, args...)
	}
	if !slices.Contains(args, "-listen") && !slices.Contains(args, "-tls") {
		args = append([]string{"-listen", "127.0.0.1:0"}, args...)
	}
	cmd := exec.Command(path, args...)
	var err error
	s.program, err = program.Start(cmd, func() error { return startIn(place, cmd) }, func(line string) { s.add(parseEvent(line)) })
	if err != nil {
		t.Fatal(err)
	}
	s.First = s.program.First
	t.Cleanup(func() { s.end(2*time.Second, 8*time.Second) })
	return s
}

func (s *Server) add(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.after = len(s.events) + 1
	s.events = append(s.events, e)
	close(s.more)
	s.more = make(chan struct{})
}

// since returns the events but the first n, and what is closed at the next one.
func (s *Server) since(n int) ([]Event, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.events[n:], s.more
}

// Wait returns the first event that matches, from the beginning of the log on.
func (s *Server) Wait(m Match) Event {
	s.t.Helper()
	return s.After(Event{}, m)
}

// After returns the first event after e that matches.
func (s *Server) After(e Event, m Match) Event {
	s.t.Helper()
	limit := time.After(patience)
	seen, over := e.after, false
	for {
		events, more := s.since(seen)
		if i := slices.IndexFunc(events, m.Is); i >= 0 {
			return events[i]
		}
		seen += len(events)
		if over {
			s.t.Fatalf("every process has ended before %s", m.Name)
		}
		select {
		case <-more:
		case <-s.program.Gone():
			over = true // one more look
		case <-limit:
			s.t.Fatalf("not in %v: %s", patience, m.Name)
		}
	}
}

// Now is the latest event, for After.
func (s *Server) Now() Event {
	events, _ := s.since(0)
	return Event{after: len(events)}
}

// Events returns all events until now.
func (s *Server) Events() []Event {
	events, _ := s.since(0)
	return slices.Clone(events)
}

// Addr returns the address of the socket of this name, http-0 for example.
func (s *Server) Addr(name string) string {
	s.t.Helper()
	e := s.Wait(Logged("listening"))
	addr, ok := e.Fields[name].(string)
	if !ok {
		s.t.Fatalf("no socket %q in %s", name, e.Line)
	}
	return addr
}

// Target returns the address of the socket of this name as the load package
// wants it.
func (s *Server) Target(name string) string {
	s.t.Helper()
	addr := s.Addr(name)
	switch {
	case strings.Contains(addr, "/"):
		return "unix:" + addr
	case name == "tls":
		return "https://" + addr
	}
	return "http://" + addr
}

// PID returns the pid in the pidfile.
func (s *Server) PID() int {
	s.t.Helper()
	text, err := os.ReadFile(s.PIDFile)
	if err != nil {
		s.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		s.t.Fatalf("pidfile: %v", err)
	}
	return pid
}

// Signal sends sig to one of the server's processes.
func (s *Server) Signal(pid int, sig syscall.Signal) {
	s.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		s.t.Fatalf("kill %d: %v", pid, err)
	}
}

// Replace puts a copy of binary in the place of the server's, by rename, as a
// deploy does.
func (s *Server) Replace(binary string) {
	s.t.Helper()
	if err := program.Replace(s.Path, binary); err != nil {
		s.t.Fatal(err)
	}
}

// Upgrade signals the process that the pidfile names and waits until another
// one is confirmed. It fails the test if the upgrade fails.
func (s *Server) Upgrade() (pid int) {
	s.t.Helper()
	verdict := s.TryUpgrade()
	if verdict.To != "draining" {
		s.t.Fatalf("the upgrade failed: %s", verdict.Line)
	}
	pid = s.PID()
	s.Wait(Changed(pid, "serving")) // it takes the next signal
	return pid
}

// TryUpgrade signals the process that the pidfile names, and returns its
// verdict: a change of its state to draining, to serving or to stopped.
func (s *Server) TryUpgrade() Event {
	s.t.Helper()
	pid, now := s.PID(), s.Now()
	s.Signal(pid, syscall.SIGUSR1)
	return s.After(now, Changed(pid, "draining", "serving", "stopped"))
}

// Stop asks the process that the pidfile names to stop, and waits until no
// process of the server is left.
func (s *Server) Stop() {
	s.t.Helper()
	s.Signal(s.PID(), syscall.SIGTERM)
	s.WaitGone()
}

// WaitGone returns when every process of the server has ended.
func (s *Server) WaitGone() {
	s.t.Helper()
	select {
	case <-s.program.Gone():
	case <-time.After(patience):
		s.t.Fatalf("not gone in %v: %v", patience, s.processes())
	}
}

// ExitCode waits for the first process to end; -1 stands for a signal.
func (s *Server) ExitCode() int {
	s.t.Helper()
	select {
	case <-s.program.Exited():
	case <-time.After(patience):
		s.t.Fatalf("the first process, %d, has not ended in %v", s.First.Pid, patience)
	}
	return s.program.Code()
}

// end leaves nothing behind. It is polite within the first limit, in a hurry
// within the second.
func (s *Server) end(polite, hurried time.Duration) {
	_ = s.over(polite) || s.over(hurried)
	for _, pid := range s.processes() {
		s.t.Errorf("process %d is left: killed", pid)
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may just have ended
	}
	<-s.program.Exited()
	if !s.t.Failed() {
		return
	}
	for _, e := range s.Events() {
		s.t.Log(e.Line)
	}
}

// over asks every process to stop, which for a draining one means to hurry.
func (s *Server) over(limit time.Duration) bool {
	for _, pid := range s.processes() {
		program.Ask(pid)
	}
	select {
	case <-s.program.Gone():
		return true
	case <-time.After(limit):
		return false
	}
}

// processes returns what is alive of the server, logged or not. Without /proc it
// is whatever has logged its pid.
func (s *Server) processes() []int {
	var logged []int
	for _, e := range s.Events() {
		if e.PID != 0 {
			logged = append(logged, e.PID)
		}
	}
	return s.program.PIDs(logged...)
}
