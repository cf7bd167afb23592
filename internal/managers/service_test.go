//go:build linux

package managers

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
	"github.com/go-handover/handover/internal/proctest/load"
)

// manager is a process manager with cmd/demo as its only service, which its
// file in contrib starts.
type manager interface {
	pid() int              // of the process that it watches, 0 if there is none
	signal(syscall.Signal) // as an operator sends one
	stop()                 // returns when the manager says that the service is down
	start()                // after a stop
	restart()              // as an operator does, if there is a command for it
}

// service is the server under a manager.
type service struct {
	*proctest.Server
	home
	manager
	init    func() int // process 1 of the server's PID namespace; nil: it is in that of the test
	program string     // what is deployed, a package that supervises itself; empty: cmd/demo
}

// build builds a version of what is deployed.
func (s *service) build(version string) string {
	s.t.Helper()
	if s.program == "" {
		return demo(s.t, version)
	}
	return proctest.Build(s.t, s.program, "-ldflags=-X main.version="+version)
}

// target is where the load goes.
func (s *service) target() string { return "http://" + s.addr }

// kill signals one of the server's processes past the manager. Its pid is what
// it has logged.
func (s *service) kill(pid int, sig syscall.Signal) {
	s.t.Helper()
	if s.init != nil {
		pid = hostPID(s.t, s.init(), pid)
	}
	s.Signal(pid, sig)
}

// upgrade asks the manager for one and returns the verdict of the server.
func (s *service) upgrade() proctest.Event {
	s.t.Helper()
	pid, now := s.PID(), s.Now()
	s.signal(syscall.SIGUSR1)
	verdict := proctest.Changed(pid, "draining", "serving", "stopped")
	return s.After(now, proctest.Match{Name: verdict.Name, Is: func(e proctest.Event) bool {
		return verdict.Is(e) && e.From != "starting" // it may have answered before it has logged that
	}})
}

// upgraded is upgrade, which must succeed. It returns the pid of the new server.
func (s *service) upgraded() (pid int) {
	s.t.Helper()
	if verdict := s.upgrade(); verdict.To != "draining" {
		s.t.Fatalf("the upgrade failed: %s", verdict.Line)
	}
	pid = s.PID()
	s.Wait(proctest.Changed(pid, "serving")) // it takes the next signal
	return pid
}

// begin starts an upgrade to a binary and returns the pid of the successor, which
// has opened its sockets and warms up.
func (s *service) begin(binary string) (pid int) {
	s.t.Helper()
	now := s.Now()
	s.install("app", binary)
	s.signal(syscall.SIGUSR1)
	return s.After(now, proctest.Logged("listening")).PID
}

// starts counts how often the server was started other than by an upgrade.
func (s *service) starts() (n int) {
	for _, e := range s.Events() {
		if e.Generation == 1 && e.From == "starting" && e.To == "serving" {
			n++
		}
	}
	return n
}

// warnings returns what the server has said about its process manager.
func (s *service) warnings() (lines []string) {
	for _, e := range s.Events() {
		if e.Message == "process manager loses upgrades" {
			lines = append(lines, e.Line)
		}
	}
	return lines
}

// watched asserts that the manager still watches the process that it started,
// and has not had to start the server again.
func (s *service) watched(pid, starts int) {
	s.t.Helper()
	if got := s.pid(); got != pid {
		s.t.Errorf("the manager watches %d, and had started %d", got, pid)
	}
	if got := s.starts(); got != starts {
		s.t.Errorf("the server was started %d times, want %d", got, starts)
	}
}

// under puts clients that never retry on the service. What they lose fails the
// test at the end; what is in flight on the connections of a process that is
// killed between crash and the end is not lost by anybody alive.
func (s *service) under() (l *load.Load, end func() load.Report) {
	s.t.Helper()
	l, err := load.Start(s.t.Context(), load.Config{
		Target:  s.target(),
		Clients: map[load.Kind]int{load.New: 2, load.Late: 1, load.Get: 4, load.Post: 4, load.Slow: 2},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	l.WaitFor(s.PID())
	return l, func() load.Report {
		s.t.Helper()
		r := l.Stop()
		if r.Total.Failed > 0 {
			s.t.Errorf("lost:\n%s", r)
		}
		return r
	}
}

// crash kills a process of the server, which takes with it what it had accepted.
// back returns when the server is there again.
func (s *service) crash(l *load.Load, pid int, back func()) {
	s.t.Helper()
	from := time.Now()
	s.kill(pid, syscall.SIGKILL)
	back()
	cutUntilNow(l, from)
}

// cutUntilNow says that a process was killed after from. Its clients learn of it
// at once, but the machine may be busy.
func cutUntilNow(l *load.Load, from time.Time) { l.Crash(from, time.Now().Add(load.Window)) }

// slow starts a request that takes a while, and returns when the server works
// on it. answered waits for the answer.
func (s *service) slow(d time.Duration) (answered func()) {
	s.t.Helper()
	begun, done := make(chan struct{}), make(chan error, 1)
	// A connection that it kept would be one that a stop waits for.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	go func() {
		// The first line comes at once, the rest over d.
		resp, err := client.Get(fmt.Sprintf("%s/stream?ms=%d", s.target(), d.Milliseconds()))
		close(begun)
		if err != nil {
			done <- err
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && !strings.HasSuffix(string(body), "end\n") {
			err = fmt.Errorf("cut off: %q", body)
		}
		done <- err
	}()
	<-begun
	return func() {
		s.t.Helper()
		if err := <-done; err != nil {
			s.t.Errorf("a request that was under way: %v", err)
		}
	}
}

// answers waits until the server does, and returns who it says it is.
func (s *service) answers() (said string) {
	s.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	until(s.t, "the server answers", func() bool {
		resp, err := client.Get(s.target())
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		said = string(body)
		return err == nil
	})
	return said
}

// alone asserts that no process of the server is left.
func (s *service) alone() {
	s.t.Helper()
	if pid := s.pid(); pid != 0 {
		s.t.Errorf("the manager says that the service runs, as %d", pid)
	}
	if pids := s.running(); len(pids) > 0 {
		s.t.Errorf("left running: %v", pids)
	}
}

// scenario is what a server lives through.
type scenario struct {
	name  string
	flags string // of the server
	run   func(t *testing.T, s *service)
}

// scenarios are those of each manager. What happens
// before ready or on probation has seconds for that: the machine is busy.
var scenarios = []scenario{
	{"upgrades", "-probation 100ms", tenUpgrades},
	{"faults", "-probation 1s", failedAndRolledBack},
	{"killed before ready", "-ready-delay 3s -probation 300ms", killedBeforeReady},
	{"killed on probation", "-probation 5s", killedOnProbation},
	{"killed as probation ends", "-probation 100ms", killedAsProbationEnds},
	{"killed after probation", "-probation 100ms", killedAfterProbation},
	{"killed while the old one drains", "-probation 100ms", killedWhileOldDrains},
	{"stop after an upgrade", "-probation 100ms", stopAfterAnUpgrade},
	{"stop before ready", "-ready-delay 1s", stopDuringAnUpgrade},
	{"stop on probation", "-probation 20s", stopOnProbation},
	{"restart", "-probation 100ms", restarted},
	{"storm", "-ready-delay 3s -probation 6s", storm},
}

// unnamed is for managers that listen to a process that no other one has named.
var unnamed = scenario{"old one killed on probation", "-probation 20s", oldKilledOnProbation}

// live runs the scenarios, each with a manager of its own.
func live(t *testing.T, open func(t *testing.T, flags string) *service, more ...scenario) {
	t.Helper()
	for _, sc := range append(more, scenarios...) {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			s := open(t, sc.flags)
			s.Wait(proctest.Reached(1, "serving"))
			sc.run(t, s)
		})
	}
}

func tenUpgrades(t *testing.T, s *service) {
	watched := s.pid()
	if watched == 0 {
		t.Fatal("the manager says that the service does not run")
	}
	l, end := s.under()
	for i := range 10 {
		s.install("app", s.build(fmt.Sprintf("v%d", i%2+2)))
		l.Mark(time.Now())
		l.WaitFor(s.upgraded())
		s.watched(watched, 1)
	}
	if r := end(); len(r.Processes) != 11 {
		t.Errorf("%d processes have answered, want 11\n%s", len(r.Processes), r)
	}
	if warned := s.warnings(); len(warned) > 0 {
		t.Errorf("warned in spite of the supervisor: %q", warned)
	}
	s.stop()
	s.alone()
}

func failedAndRolledBack(t *testing.T, s *service) {
	watched, pid := s.pid(), s.PID()
	l, end := s.under()
	for fault, phase := range map[string]string{
		"crash-before-ready":      "ready",
		"crash-after-ready:100ms": "probation",
	} {
		s.install("app", proctest.Faulty(t, fault))
		now, from := s.Now(), time.Now()
		if verdict := s.upgrade(); verdict.To != "serving" {
			t.Errorf("%s: %s", fault, verdict.Line)
		}
		cutUntilNow(l, from)
		s.After(now, proctest.Text("upgrader: "+phase+": ")) // the operator is told
		s.watched(watched, 1)
		if s.PID() != pid {
			t.Errorf("%s: the pidfile names %d, want %d", fault, s.PID(), pid)
		}
	}
	s.install("app", s.build("v2"))
	l.WaitFor(s.upgraded())
	end()
	s.watched(watched, 1)
}

func killedBeforeReady(_ *testing.T, s *service) {
	watched, pid := s.pid(), s.PID()
	l, end := s.under()
	next := s.begin(s.build("v2"))
	now := s.Now()
	s.crash(l, next, func() { s.After(now, proctest.Changed(pid, "serving")) })
	s.watched(watched, 1)
	l.WaitFor(s.upgraded())
	end()
}

func killedOnProbation(_ *testing.T, s *service) {
	watched, pid := s.pid(), s.PID()
	l, end := s.under()
	next := s.begin(s.build("v2"))
	s.Wait(proctest.Changed(next, "on probation"))
	now := s.Now()
	s.crash(l, next, func() { s.After(now, proctest.Changed(pid, "serving")) })
	s.watched(watched, 1)
	l.WaitFor(s.upgraded())
	end()
}

// oldKilledOnProbation leaves the new process alone, which nobody has named yet.
func oldKilledOnProbation(t *testing.T, s *service) {
	l, end := s.under()
	old := s.PID()
	next := s.begin(s.build("v2"))
	s.Wait(proctest.Changed(next, "on probation"))
	now := s.Now()
	s.crash(l, old, func() { s.After(now, proctest.Changed(next, "serving")) })
	l.WaitFor(next)
	until(t, "the manager signals the new one", func() bool {
		s.signal(syscall.SIGUSR1) // there may be no main process for an instant
		return slices.ContainsFunc(s.Events(), proctest.Changed(next, "upgrading").Is)
	})
	end()
	s.stop()
	s.alone()
	if got := s.starts(); got != 1 {
		t.Errorf("the server was started %d times", got)
	}
}

// killedAsProbationEnds kills the new process within the milliseconds in which the
// manager hears of it. Either the old one serves again, or another one is started.
func killedAsProbationEnds(_ *testing.T, s *service) {
	watched := s.pid()
	l, end := s.under()
	for range 3 {
		old := s.PID()
		next := s.begin(s.build("v2"))
		s.Wait(proctest.Changed(old, "probation"))
		now := s.Now()
		// Twice 100 ms: see attempt.expire. The rest is chance.
		time.Sleep(200*time.Millisecond + rand.N(10*time.Millisecond))
		s.crash(l, next, func() {
			again, anew := proctest.Changed(old, "serving"), proctest.Reached(1, "serving")
			s.After(now, proctest.Match{Name: "a process serves", Is: func(e proctest.Event) bool { return again.Is(e) || anew.Is(e) }})
			l.WaitFor(s.PID())
		})
		s.watched(watched, s.starts())
	}
	l.WaitFor(s.upgraded())
	end()
	s.watched(watched, s.starts())
}

func killedAfterProbation(t *testing.T, s *service) {
	watched := s.pid()
	l, end := s.under()
	s.install("app", s.build("v2"))
	next := s.upgraded()
	s.Wait(proctest.Logged("drained")) // the old one has nothing left
	s.killedAndBack(l, next)
	if said := s.answers(); !strings.Contains(said, "version=v2\n") {
		t.Errorf("what was started again is not what was deployed last: %s", said)
	}
	s.watched(watched, 2)
	l.WaitFor(s.upgraded()) // it upgrades as before
	end()
	s.watched(watched, 2)
}

func killedWhileOldDrains(t *testing.T, s *service) {
	killedOnce(t, s, func() {})
}

// killedOnce kills the new process while the old one drains, once what heard waits
// for has happened.
func killedOnce(_ *testing.T, s *service, heard func()) {
	watched, old := s.pid(), s.PID()
	answered := s.slow(3 * time.Second)
	l, end := s.under()
	s.install("app", s.build("v2"))
	next := s.upgraded()
	heard()
	s.killedAndBack(l, next)
	answered() // by the old one, which was draining all the time
	s.Wait(proctest.Match{Name: "the old one has drained", Is: func(e proctest.Event) bool {
		return e.Message == "drained" && e.PID == old
	}})
	s.watched(watched, 2)
	end()
}

// killedAndBack kills the server, and waits until another one answers: nobody
// has asked for it, and nobody is refused meanwhile.
func (s *service) killedAndBack(l *load.Load, pid int) {
	s.t.Helper()
	now := s.Now()
	s.crash(l, pid, func() {
		s.After(now, proctest.Reached(1, "serving"))
		l.WaitFor(s.PID())
	})
}

func stopAfterAnUpgrade(_ *testing.T, s *service) {
	answered := s.slow(2 * time.Second) // the old one still drains
	s.upgraded()
	another := s.slow(time.Second) // and this one is the new server's
	s.stop()
	answered()
	another()
	s.alone()
	s.manager.start()
	s.answers()
}

func stopDuringAnUpgrade(_ *testing.T, s *service) {
	answered := s.slow(time.Second)
	s.begin(s.build("v2"))
	s.stop()
	answered()
	s.alone()
}

func stopOnProbation(_ *testing.T, s *service) {
	old := s.PID()
	answered := s.slow(time.Second)
	s.begin(s.build("v2"))
	s.Wait(proctest.Changed(old, "probation")) // it accepts no more
	// Of those files that say how long a generation may outlive the server: more
	// than a supervisor gives by itself, which is 10 s.
	long := 12 * time.Second
	if s.program != "" {
		long = 8 * time.Second
	}
	others := make([]func(), 4)
	for i := range others { // an Accept that the old one was in can still return one
		others[i] = s.slow(long)
	}
	s.stop()
	answered()
	for _, answered := range others {
		answered()
	}
	s.alone()
}

func restarted(t *testing.T, s *service) {
	s.upgraded()
	answered := s.slow(time.Second)
	s.restart()
	answered()
	if said := s.answers(); !strings.Contains(said, "generation=1 ") {
		t.Errorf("after a restart it is %s", said)
	}
	s.upgraded()
}

// storm sends many signals for one upgrade: the first at once, the others while the
// successor is stopped, so that it takes until they are sent.
func storm(t *testing.T, s *service) {
	watched := s.pid()
	l, end := s.under()
	now := s.Now()
	s.install("app", s.build("v2"))
	s.signal(syscall.SIGUSR1)
	next := s.After(now, proctest.Logged("listening")).PID
	s.kill(next, syscall.SIGSTOP)
	for range 9 {
		s.signal(syscall.SIGUSR1)
	}
	s.kill(next, syscall.SIGCONT)
	s.After(now, proctest.Reached(2, "serving"))
	l.WaitFor(next)
	end()
	attempts := slices.DeleteFunc(s.Events(), func(e proctest.Event) bool { return e.To != "upgrading" })
	if len(attempts) != 1 {
		t.Errorf("10 signals have made %d attempts", len(attempts))
	}
	s.watched(watched, 1)
}
