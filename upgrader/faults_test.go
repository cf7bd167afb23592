//go:build linux

package upgrader

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// prober makes one connection after the other and asks a question on each.
type prober struct {
	refused, lost, answered atomic.Int64
	example                 atomic.Value
	stop, stopped           chan struct{}
}

func (s *service) probe() *prober {
	addr := s.addr("main")
	p := &prober{stop: make(chan struct{}), stopped: make(chan struct{})}
	go func() {
		defer close(p.stopped)
		for {
			select {
			case <-p.stop:
				return
			case <-time.After(2 * time.Millisecond):
				p.ask(addr)
			}
		}
	}()
	s.t.Cleanup(p.end)
	return p
}

func (p *prober) end() {
	select {
	case <-p.stop:
	default:
		close(p.stop)
	}
	<-p.stopped
}

func (p *prober) ask(addr string) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		p.refused.Add(1)
		p.example.Store(err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(deadline))
	_, err = fmt.Fprintln(c, "probe")
	if err == nil {
		_, err = bufio.NewReader(c).ReadString('\n')
	}
	if err != nil {
		p.lost.Add(1)
		p.example.Store(err)
		return
	}
	p.answered.Add(1)
}

// check asserts that nothing was refused, and at most lost connections were
// lost: those that a process had accepted when it was killed.
func (p *prober) check(t *testing.T, lost int64) {
	t.Helper()
	for limit := time.Now().Add(deadline); p.answered.Load() == 0 && time.Now().Before(limit); {
		time.Sleep(time.Millisecond)
	}
	p.end()
	if p.refused.Load() > 0 || p.lost.Load() > lost || p.answered.Load() == 0 {
		t.Errorf("%d refused, %d lost, %d answered (%v); want 0 refused, at most %d lost",
			p.refused.Load(), p.lost.Load(), p.answered.Load(), p.example.Load(), lost)
	}
}

// serves asserts that exactly this process is left, and that the pidfile names it.
func (s *service) serves(pid, generation int) {
	s.t.Helper()
	if got := s.pidfile(); got != pid {
		s.t.Errorf("pidfile says %d, want %d", got, pid)
	}
	for range 4 {
		gotPID, gotGeneration := s.ask("who")
		if gotPID != pid || gotGeneration != generation {
			s.t.Errorf("process %d of generation %d answers, want %d of %d", gotPID, gotGeneration, pid, generation)
		}
	}
	for _, name := range []string{".app.pid.next", ".app.pid.prev"} {
		// The last of them goes once the process takes the next trigger.
		s.eventually(name+" is gone", func() bool {
			_, err := os.Lstat(filepath.Join(filepath.Dir(s.config.PIDFile), name))
			return err != nil
		})
	}
}

// gone waits until a process is dead and, if it is a child of ours, reaped.
func (s *service) gone(pid int) {
	s.t.Helper()
	if pid == s.first.Process.Pid {
		_, _ = s.first.Process.Wait()
		return
	}
	s.eventually(fmt.Sprintf("end of process %d", pid), func() bool { return dead(pid) })
}

// dead: no such process, or a zombie whose parent is not of this service.
func dead(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

// zombies asserts that pid has no dead child that it did not reap.
func (s *service) zombies(pid int) {
	s.t.Helper()
	s.eventually(fmt.Sprintf("process %d has reaped its children", pid), func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		return err == nil && len(strings.Fields(string(b))) == 0
	})
}

// longProbation, in milliseconds, is not over before a fault of 4 s happens.
const longProbation = 8000

// TestFaultOfSuccessor: whatever the new process does, the old one serves on,
// or takes the service back; nobody is refused, and the next upgrade works.
func TestFaultOfSuccessor(t *testing.T) {
	t.Parallel()
	points := []struct {
		name  string
		phase Phase
	}{
		{"start", PhaseHello},
		{"new", PhaseReady},
		{"listen", PhaseReady},
		{"ready", PhaseCommit},
		{"commit", PhaseCommit},
		{"open", PhaseCommit},
		{"serving", PhaseProbation},
		{"ran 0s", PhaseProbation},
		{"ran 1000ms", PhaseProbation},
		{"ran 4000ms", PhaseProbation},
	}
	for _, carrier := range carriers {
		for _, action := range []string{"exit0", "exit1", "panic", "kill", "hang"} {
			for _, point := range points {
				t.Run(carrier+"/"+action+" at "+point.name, func(t *testing.T) {
					t.Parallel()
					testFaultOfSuccessor(t, carrier, action, point.name, point.phase)
				})
			}
		}
	}
}

func testFaultOfSuccessor(t *testing.T, carrier, action, point string, phase Phase) {
	t.Helper()
	s := carriedBy(t, carrier)
	s.config.Ready = 2000
	if phase == PhaseProbation {
		s.config.Probation = longProbation
	}
	if action == "hang" && phase == PhaseProbation {
		action, s.config.Check = "stop", "dial" // the kernel sees nothing wrong
	}
	s.start()
	old := s.pidfile()
	p := s.probe()

	s.config.Faults = []fault{{2, point, action}}
	from := s.mark()
	failed := func(r record) bool { return r.str("msg") == "fault" }
	if carrier == takesOver && point == "start" { // the old process never hears of it
		s.configure()
		cmd := s.comes(old)
		s.waitAfter(from, "fault", failed)
		_ = cmd.Process.Kill() // if it hangs: nobody else does
	} else {
		if s.upgrade() {
			t.Fatal("a faulty successor was confirmed")
		}
		text := s.waitAfter(from, "verdict", moved(old, "serving")).str("err")
		// A process that dies at "ready" may have been committed or not.
		if point != "ready" && phase != PhaseProbation && !strings.Contains(text, "upgrader: "+string(phase)+": ") {
			t.Errorf("the log says %q, want phase %s", text, phase)
		}
	}
	r := s.waitAfter(from, "fault", failed)
	s.gone(r.num("pid"))
	s.serves(old, 1)
	s.zombies(old)

	s.config.Faults = nil
	if !s.upgrade() {
		t.Fatal("the next good upgrade failed")
	}
	s.gone(old)
	p.check(t, 1) // the one that was accepted by the process that died
	s.serves(s.pidfile(), 2)
}

var errNoAnswer = errors.New("no answer")

// dialCheck asks the service's own address for as long as probation lasts, as
// an Options.Check does.
func dialCheck(ctx context.Context, addr string) error {
	for {
		if err := dialOnce(addr, 2*time.Second); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func dialOnce(addr string, limit time.Duration) error {
	c, err := net.DialTimeout("tcp", addr, limit)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := fmt.Fprintln(c, "check"); err != nil {
		return err
	}
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		return errors.Join(errNoAnswer, err)
	}
	return nil
}

// TestFaultOfPredecessor: if the old process dies the new one takes over, and
// one that is only stopped is waited for, until the limit.
func TestFaultOfPredecessor(t *testing.T) {
	t.Parallel()
	tests := []struct {
		point     string
		afterStop int // the generation that serves after SIGSTOP, the limit, and SIGCONT
	}{
		{"started", 1},
		{"hello", 1},
		{"ready", 1},
		{"renamed", 1},
		{"committed", 2},
		{"serving", 2},
		{"probation", 2},
		{"confirm", 2},
	}
	for _, carrier := range carriers {
		t.Run(carrier, func(t *testing.T) {
			t.Parallel()
			for _, tt := range tests {
				t.Run("kill at "+tt.point, func(t *testing.T) {
					t.Parallel()
					if carrier == takesOver && tt.point == "started" {
						testPredecessorDiesTooEarly(t)
						return
					}
					s := carriedBy(t, carrier).start()
					old, from := s.pidfile(), s.mark()
					p := s.probe()
					s.config.Faults = []fault{{1, tt.point, "kill"}}
					s.configure()
					s.trigger(old)
					s.gone(old)
					r := s.waitAfter(from, "successor", func(r record) bool { return moved(0, "serving")(r) && r.num("pid") != old })
					s.config.Faults = nil
					s.serves(r.num("pid"), 2)
					p.check(t, 1) // the one that was accepted by the process that died
					if !s.upgrade() {
						t.Fatal("the next upgrade failed")
					}
				})
				t.Run("stop at "+tt.point, func(t *testing.T) {
					t.Parallel()
					s := carriedBy(t, carrier).start()
					old, from := s.pidfile(), s.mark()
					s.config.Faults = []fault{{1, tt.point, "stop"}}
					s.configure()
					s.trigger(old)
					s.waitAfter(from, "fault", func(r record) bool { return r.str("msg") == "fault" })
					s.config.Faults = nil
					s.configure()
					if tt.afterStop == 1 {
						r := s.waitAfter(from, "the successor's end", func(r record) bool {
							return r.str("msg") == "program failed" || r.str("to") == "stopped"
						})
						s.gone(r.num("pid"))
						s.signal(old, syscall.SIGCONT)
						s.waitAfter(from, "serving again", moved(old, "serving"))
						s.serves(old, 1)
					} else {
						r := s.waitAfter(from, "the successor on its own", func(r record) bool {
							return moved(0, "serving")(r) && r.num("pid") != old
						})
						s.serves(r.num("pid"), 2)
						s.signal(old, syscall.SIGCONT)
						s.waitAfter(from, "drain", moved(old, "draining"))
						s.gone(old)
						s.serves(r.num("pid"), 2)
					}
					if !s.upgrade() {
						t.Fatal("the next upgrade failed")
					}
				})
			}
			for _, ms := range []int{1000, 4000} {
				t.Run(fmt.Sprintf("kill %d ms into probation", ms), func(t *testing.T) {
					t.Parallel()
					s := carriedBy(t, carrier)
					s.config.Probation = longProbation
					s.start()
					old, from := s.pidfile(), s.mark()
					p := s.probe()
					// The successor's own clock says when, and it kills its predecessor.
					s.config.Faults = []fault{{2, fmt.Sprintf("ran %dms", ms), "kill predecessor"}}
					s.configure()
					s.trigger(old)
					r := s.waitAfter(from, "successor", func(r record) bool { return moved(0, "serving")(r) && r.num("pid") != old })
					s.gone(old)
					s.serves(r.num("pid"), 2)
					p.check(t, 1)
				})
			}
		})
	}
}

// freePort returns a port of 127.0.0.1 that nobody has at this moment.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// testPredecessorDiesTooEarly: a process that comes for the sockets and has none
// of them yet when the one that serves dies opens them itself.
func testPredecessorDiesTooEarly(t *testing.T) {
	t.Helper()
	s := carriedBy(t, takesOver)
	s.config.Listen[0][2] = "127.0.0.1:" + freePort(t)
	s.start()
	long := time.Now().Add(-time.Minute) // a socket that was made just now is nobody's to remove
	must(t, os.Chtimes(s.config.Control, long, long))
	old, from := s.pidfile(), s.mark()
	s.config.Faults = []fault{{1, "started", "kill"}}
	s.configure()
	s.trigger(old)
	s.gone(old)
	r := s.waitAfter(from, "a first process", func(r record) bool { return moved(0, "serving")(r) && r.num("pid") != old })
	s.config.Faults = nil
	s.serves(r.num("pid"), 1)
	if !s.upgrade() {
		t.Fatal("the next upgrade failed")
	}
}

// TestTermStopsTheService: SIGTERM to the old or the new process, at any point
// of an upgrade, stops the service politely.
func TestTermStopsTheService(t *testing.T) {
	t.Parallel()
	tests := []struct {
		generation int
		point      string
	}{
		{1, "started"},
		{1, "hello"},
		{1, "ready"},
		{1, "renamed"},
		{1, "committed"},
		{1, "serving"},
		{1, "probation"},
		{1, "ran in probation"},
		{2, "new"},
		{2, "listen"},
		{2, "ready"},
		{2, "commit"},
		{2, "open"},
		{2, "serving"},
		{2, "ran 0s"},
		{2, "ran 1000ms"},
		{2, "ran 4000ms"},
	}
	for _, carrier := range carriers {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s/generation %d at %s", carrier, tt.generation, tt.point), func(t *testing.T) {
				t.Parallel()
				s := carriedBy(t, carrier)
				s.config.Probation = longProbation
				s.start()
				old := s.pidfile()
				// A request that is under way completes.
				c, err := net.Dial("tcp", s.addr("main"))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				s.askOn(c, "first")
				if _, err := fmt.Fprintln(c, "sleep 6000"); err != nil {
					t.Fatal(err)
				}
				s.config.Faults = []fault{{tt.generation, tt.point, "term"}}
				if tt.point == "ran in probation" {
					s.config.Faults = []fault{{2, "ran 1000ms", "term predecessor"}}
				}
				s.configure()
				s.trigger(old)
				_ = c.SetDeadline(time.Now().Add(deadline))
				if answer, err := bufio.NewReader(c).ReadString('\n'); err != nil {
					t.Errorf("the request under way: %q, %v", answer, err)
				}
				s.allGone()
				if _, err := os.Lstat(s.config.PIDFile); err == nil {
					t.Error("the pidfile is left behind")
				}
				for _, line := range s.lines() {
					if strings.Contains(line, "program failed") && tt.generation != 2 {
						t.Log(line)
					}
				}
			})
		}
	}
}

// TestTermBeforeNewIsAFailedUpgrade: a process that has not called New cannot
// say that it was told to stop. It is killed, and the old one serves on.
func TestTermBeforeNewIsAFailedUpgrade(t *testing.T) {
	t.Parallel()
	s := newService(t).start()
	old := s.pidfile()
	s.config.Faults = []fault{{2, "start", "term"}}
	if s.upgrade() {
		t.Fatal("upgraded")
	}
	s.serves(old, 1)
}
