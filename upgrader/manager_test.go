//go:build unix

package upgrader

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-handover/handover/internal/wire"
)

// told is what a service manager has heard.
type told struct {
	mu    sync.Mutex
	lines []string
	hears func(line string) // called for each
	keeps bool              // it stores descriptors, and closes the others
	kept  []int
}

// hear is the manager's end of sd_notify.
func (h *told) hear(state string, rights ...int) error {
	line := strings.ReplaceAll(state, "\n", " ")
	h.mu.Lock()
	h.lines = append(h.lines, line)
	hears, keep := h.hears, h.keeps && strings.HasPrefix(state, "FDSTORE=1")
	h.mu.Unlock()
	if hears != nil {
		hears(line)
	}
	for _, n := range rights {
		if keep {
			own, err := syscall.Dup(n)
			if err != nil {
				return err
			}
			h.mu.Lock()
			h.kept = append(h.kept, own)
			h.mu.Unlock()
		}
	}
	return nil
}

// set says what the manager does with what it hears from now on.
func (h *told) set(keeps bool, hears func(line string)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keeps, h.hears = keeps, hears
}

// forget closes what is stored.
func (h *told) forget() {
	for _, n := range h.kept {
		_ = syscall.Close(n)
	}
}

// listens makes p one that has a manager, which wants to hear each interval.
func (p *process) listens(first bool, interval time.Duration) *told {
	heard := new(told)
	p.t.Cleanup(heard.forget)
	p.manager = manager{
		log: slog.New(slog.DiscardHandler), main: first, interval: interval, stored: map[string]bool{}, send: heard.hear,
	}
	return heard
}

// want compares all that was heard since the last call. A number that no test
// can know is written as *.
func (h *told) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	h.mu.Lock()
	got := h.lines
	h.lines = nil
	h.mu.Unlock()
	for i, line := range got {
		fields := strings.Split(line, " ")
		for j, f := range fields {
			if name, _, _ := strings.Cut(f, "="); name == "MONOTONIC_USEC" {
				fields[j] = name + "=*"
			}
		}
		got[i] = strings.Join(fields, " ")
	}
	if !slices.Equal(got, want) {
		t.Errorf("the manager has heard\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// managed is newFirst with a manager, serving.
func managed(t *testing.T, o Options) (*process, *told) {
	t.Helper()
	var heard *told
	p := newProcess(t, o, func(p *process) {
		var err error
		p.pidfile, err = openPIDFile(p.path)
		must(t, err)
		heard = p.listens(true, 0)
	})
	must(t, p.Ready())
	heard.want(t, "READY=1 STATUS=serving, generation 1")
	return p, heard
}

const begins = "RELOADING=1 MONOTONIC_USEC=* STATUS=upgrading to generation 2"

func TestManagerIsToldOfAnUpgrade(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, heard := managed(t, Options{})
		a, s := p.upgrade(PhaseReady)
		heard.want(t, begins)
		s.say(wire.Progress{Text: "half\nway"})
		heard.want(t, "EXTEND_TIMEOUT_USEC=60000000 STATUS=half way")
		s.say(wire.Ready{}, wire.Serving{})
		heard.want(t) // nothing before there is no way back
		s.watch(func(m wire.Message) {
			if _, ok := m.(wire.Confirm); ok {
				heard.want(t, fmt.Sprintf("MAINPID=%d", s.pid), "BARRIER=1") // it knows whom to watch
			}
		})
		a.want(nil)
		wantHears[wire.Draining](s.farEnd)
		s.watch(nil)
		p.Stop()
		time.Sleep(time.Hour)
		heard.want(t) // it drains: STOPPING=1 would end the unit
	})
}

// A successor that dies while it is named: has the manager taken the name, it
// sees the death and starts the service again. Has it not, it watches this process.
func TestSuccessorDiesWhileItIsNamed(t *testing.T) {
	for _, taken := range []bool{true, false} {
		t.Run(fmt.Sprint("taken ", taken), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p, heard := managed(t, Options{})
				a, s := p.upgrade(PhaseProbation)
				heard.want(t, begins)
				heard.set(!taken, func(line string) {
					if line == "BARRIER=1" {
						s.die()
					}
				})
				<-a.answered
				name := fmt.Sprintf("MAINPID=%d", s.pid)
				probe := []string{name, "BARRIER=1", "FDSTORE=1 FDNAME=upgrader?probe", "BARRIER=1", "FDSTOREREMOVE=1 FDNAME=upgrader?probe"}
				if taken {
					a.want(nil)
					p.wantEnd(draining, ErrUpgraded)
					p.wantOpen(false)
					heard.want(t, probe...)
					return
				}
				err := a.wantFailed(PhaseProbation)
				p.wantServing()
				p.wantOpen(true)
				wantPID(t, p.path, os.Getpid())
				heard.want(t, append(probe, fmt.Sprintf("MAINPID=%d", os.Getpid()), fmt.Sprintf("READY=1 STATUS=upgrade failed: %v ERRNO=%d", err, syscall.ECANCELED))...)
				p.Stop()
				heard.want(t, "STOPPING=1 STATUS=stopping")
			})
		})
	}
}

// What is asked while the manager hears the name. The roll-back that was possible
// until then is not any more.
func TestAskedWhileTheSuccessorIsNamed(t *testing.T) {
	for _, test := range []struct {
		name string
		ask  func(*process, *child)
		end  state
		err  error
	}{
		{"confirm", func(p *process, _ *child) { p.orders <- order{reply: make(chan error, 1)} }, draining, ErrUpgraded},
		{"roll back", func(p *process, _ *child) { p.orders <- order{rollBack: true, reply: make(chan error, 1)} }, draining, ErrUpgraded},
		{"it gives up", func(_ *process, s *child) { s.said <- wire.Failed{Text: "no database"} }, draining, ErrUpgraded},
		{"stop", func(p *process, _ *child) { p.stops <- stopRequest{} }, stopped, ErrStopped},
		{"it is stopped", func(_ *process, s *child) { s.said <- wire.Stopping{} }, stopped, ErrStopped},
		{"fail", func(p *process, _ *child) { p.stops <- stopRequest{failure: "no disk"} }, draining, ErrUpgraded},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p, heard := managed(t, Options{})
				asked := make(chan struct{})
				heard.set(false, func(line string) {
					if line == "BARRIER=1" {
						<-asked
					}
				})
				a, s := p.upgrade(PhaseProbation)
				time.Sleep(DefaultProbation + secondLook)
				synctest.Wait()
				p.wantState(probation)
				if a.isAnswered() {
					t.Fatal("Upgrade has answered before the manager has heard of the successor")
				}
				test.ask(p, s)
				synctest.Wait() // it was heard
				close(asked)
				<-a.answered
				p.wantEnd(test.end, test.err)
			})
		})
	}
}

func TestManagerIsToldOfAFailure(t *testing.T) {
	for _, test := range []struct {
		name  string
		until Phase
		fail  func(*child)
		want  string
		errno syscall.Errno
	}{
		{"it gives up", PhaseReady, func(c *child) { c.say(wire.Failed{Text: "no database"}) }, "it gave up; it said: no database", syscall.ECANCELED},
		{"it overruns", PhaseReady, func(*child) { time.Sleep(2 * time.Minute) }, "it took longer than it may", syscall.ETIMEDOUT},
		{"it dies on probation", PhaseProbation, func(c *child) { c.exit() }, "it ended", syscall.ECANCELED},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p, heard := managed(t, Options{})
				a, s := p.upgrade(test.until)
				heard.want(t, begins)
				test.fail(s)
				s.exit()
				<-a.answered
				heard.mu.Lock()
				last := heard.lines[len(heard.lines)-1]
				heard.lines = nil
				heard.mu.Unlock()
				status, errno, _ := strings.Cut(last, " ERRNO=")
				if !strings.HasPrefix(status, "READY=1 STATUS=upgrade failed: ") || !strings.Contains(status, test.want) ||
					errno != strconv.Itoa(int(test.errno)) {
					t.Errorf("the manager has heard %q, want %q and %d", last, test.want, test.errno)
				}
				p.Stop()
				heard.want(t, "STOPPING=1 STATUS=stopping")
			})
		})
	}
}

func TestManagerIsToldOfAStop(t *testing.T) {
	for _, until := range []Phase{PhaseHello, PhaseReady, PhaseCommit, PhaseProbation} {
		t.Run(string(until), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p, heard := managed(t, Options{})
				a, s := p.upgrade(until)
				heard.want(t, begins)
				go func() { time.Sleep(time.Millisecond); s.die() }()
				p.Stop()
				<-a.answered
				heard.want(t, "STOPPING=1 STATUS=stopping")
			})
		})
	}
}

// managedSuccessor is a successor with a manager: of its own, or one which does not
// listen to it yet.
func managedSuccessor(t *testing.T, own bool) (*process, *told) {
	t.Helper()
	var heard *told
	p := newProcess(t, Options{}, func(p *process) {
		p.old = servingPIDFile(t, p.path)
		p.pidfile, p.pidfileShared = succeed(t, p.old, os.Getpid()), true
		p.generation.Store(2)
		p.predecessor = newFarEnd(p, "predecessor")
		p.r.pred = predecessor{peer: newPeer(p.predecessor, firstChild-1, p.adopt), manifest: manifest}
		heard = p.listens(own, 10*time.Second)
	})
	p.Progress("warming up")
	return p, heard
}

func TestSuccessorSpeaksOnceItIsTheMainProcess(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, heard := managedSuccessor(t, false)
		ready := p.readyToServe()
		p.commit()
		must(t, <-ready)
		p.confirm()
		heard.want(t)
		p.predecessor.say(wire.Draining{})
		heard.want(t, "READY=1 STATUS=serving, generation 2", "WATCHDOG=1")
		p.predecessor.say(wire.Draining{})
		heard.want(t)
		time.Sleep(10*time.Second + 1)
		heard.want(t, "WATCHDOG=1")
		p.predecessorDies()
		heard.want(t)
		p.Stop()
		heard.want(t, "STOPPING=1 STATUS=stopping")
		time.Sleep(time.Hour)
		heard.want(t)
	})
}

func TestSuccessorOfADeadProcessIsTheMainOne(t *testing.T) {
	self := fmt.Sprintf("MAINPID=%d READY=1 STATUS=serving, generation 2", os.Getpid())
	for _, test := range []struct {
		name  string
		until func(*process)
	}{
		{"before ready", func(p *process) { p.predecessorDies(); must(p.t, p.Ready()) }},
		{"before commit", func(p *process) { ready := p.readyToServe(); p.predecessorDies(); must(p.t, <-ready) }},
		{"on probation", func(p *process) { p.readyToServe(); p.commit(); p.predecessorDies() }},
		{"confirmed", func(p *process) { p.readyToServe(); p.commit(); p.confirm(); p.predecessorDies() }},
		{"silent", func(p *process) {
			p.readyToServe()
			p.commit()
			time.Sleep(manifest.Probation + confirmTimeout + time.Second)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p, heard := managedSuccessor(t, false)
				test.until(p)
				heard.want(t, self, "WATCHDOG=1")
			})
		})
	}
}

func TestProgressOfTheFirstProcessExtendsItsStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var heard *told
		p := newProcess(t, Options{ReadyTimeout: 20 * time.Second}, func(p *process) { heard = p.listens(true, 0) })
		p.Progress("filling the cache")
		heard.want(t, "EXTEND_TIMEOUT_USEC=20000000 STATUS=filling the cache")
	})
}

func TestInitIsNotReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		p.isInit = true
		a := p.ask()
		a.want(ErrInit)
		wantText(t, a.err, "upgradectl supervise")
		wantText(t, a.err, "SupervisePID1")
		p.wantServing()
	})
}

func lookupPairs(pairs ...string) func(string) (string, bool) { return lookupIn(pairs) }

func TestFindManager(t *testing.T) {
	self := strconv.Itoa(os.Getpid())
	for _, test := range []struct {
		name     string
		env      []string
		first    bool
		present  bool
		interval time.Duration
	}{
		{"none", nil, true, false, 0},
		{"empty", []string{"NOTIFY_SOCKET="}, true, false, 0},
		{"no watchdog", []string{"NOTIFY_SOCKET=@x"}, true, true, 0},
		{"watchdog", []string{"NOTIFY_SOCKET=@x", "WATCHDOG_USEC=4000000", "WATCHDOG_PID=" + self}, true, true, 2 * time.Second},
		{"watchdog of whoever asks", []string{"NOTIFY_SOCKET=@x", "WATCHDOG_USEC=4000000"}, true, true, 2 * time.Second},
		{"watchdog of another", []string{"NOTIFY_SOCKET=@x", "WATCHDOG_USEC=4000000", "WATCHDOG_PID=1"}, true, true, 0},
		{"watchdog of the predecessor", []string{"NOTIFY_SOCKET=@x", "WATCHDOG_USEC=4000000", "WATCHDOG_PID=1"}, false, true, 2 * time.Second},
		{"not a number", []string{"NOTIFY_SOCKET=@x", "WATCHDOG_USEC=soon"}, true, true, 0},
		{"too large", []string{"NOTIFY_SOCKET=@x", "WATCHDOG_USEC=9223372036854775807"}, true, true, 0},
		{"zero", []string{"NOTIFY_SOCKET=@x", "WATCHDOG_USEC=0"}, true, true, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := findManager(lookupIn(test.env), test.first, slog.New(slog.DiscardHandler))
			if (m.send != nil) != test.present || m.interval != test.interval || m.main != test.first {
				t.Errorf("present %v, interval %v, main %v; want %v, %v, %v",
					m.send != nil, m.interval, m.main, test.present, test.interval, test.first)
			}
		})
	}
}

func TestManagerThatIsGoneIsLogged(t *testing.T) {
	var log strings.Builder
	m := findManager(lookupPairs("NOTIFY_SOCKET="+t.TempDir()+"/gone"), true, slog.New(slog.NewTextHandler(&log, nil)))
	m.serving(1)
	if !strings.Contains(log.String(), "service manager not told") {
		t.Errorf("log: %q", &log)
	}
}

func TestTrouble(t *testing.T) {
	for _, test := range []struct {
		parent            string
		notified, pidfile bool
		want              string
	}{
		{"runsv", false, true, "run script: exec upgradectl supervise"},
		{"s6-supervise", false, true, "run script: exec upgradectl supervise"},
		{"supervise", false, true, "run script: exec upgradectl supervise"},
		{"supervisord", false, true, "command=upgradectl supervise"},
		{"systemd", false, false, "NotifyAccess=main"},
		{"systemd", true, false, ""},
		{"systemd", false, true, ""},
		{"upgradectl", true, true, ""},
		{"bash", false, false, ""},
	} {
		what, cure := trouble(test.parent, test.notified, test.pidfile)
		if (what == "") != (test.want == "") || !strings.Contains(cure, test.want) {
			t.Errorf("%s: %q: %q, want %q", test.parent, what, cure, test.want)
		}
	}
}

func TestReapsStrangers(t *testing.T) {
	self := os.Getpid()
	if !reapsStrangers(lookupPairs("UPGRADER_SUPERVISOR_PID="+strconv.Itoa(self)), self) {
		t.Error("our supervisor does")
	}
	if reapsStrangers(lookupPairs("UPGRADER_SUPERVISOR_PID=1"), self) || reapsStrangers(lookupPairs(), self) {
		t.Error("the process of a test does not")
	}
}

func TestErrno(t *testing.T) {
	for _, test := range []struct {
		err  error
		want syscall.Errno
	}{
		{errors.New("x"), syscall.ECANCELED},
		{fmt.Errorf("x: %w", ErrTimeout), syscall.ETIMEDOUT},
		{&SuccessorError{Err: &os.PathError{Err: syscall.ENOENT}}, syscall.ENOENT},
	} {
		if got := errno(test.err); got != test.want {
			t.Errorf("%v: %v, want %v", test.err, got, test.want)
		}
	}
}
