package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
	"github.com/go-handover/handover/internal/proctest/load"
)

// standBy starts a demo that stands by for s, and returns when it is ready.
func (s service) standBy(t *testing.T, version string, args ...string) service {
	t.Helper()
	now := s.Now()
	args = append([]string{"-standby", "-control", s.control, "-pidfile", s.PIDFile, "-drain-timeout", "10s"}, args...)
	next := service{proctest.Spawn(t, proctest.Demo(t, version), args...), s.control}
	s.After(now, proctest.Logged("standby is ready"))
	return next
}

// underLoad puts many kinds of client on s.
func (s service) underLoad(t *testing.T) *load.Load {
	t.Helper()
	l, err := load.Start(t.Context(), load.Config{
		Target:  s.Target("http-0"),
		Clients: map[load.Kind]int{load.New: 4, load.Late: 2, load.Get: 4, load.Post: 4, load.Slow: 2, load.Stream: 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	l.WaitFor(s.PID())
	return l
}

func TestPromoteUnderLoadLosesNothing(t *testing.T) {
	t.Parallel()
	s := start(t, "-probation", "200ms")
	old := s.PID()
	young := s.standBy(t, "v2", "-probation", "200ms").First.Pid
	l := s.underLoad(t)
	said := ctl(t, s.bySocket(), "promote")
	said.want(t, exitDone)
	order := `(?s)prepare.*ready +process YOUNG has stood by\n.*commit.*probation.*done +process YOUNG has replaced process OLD\n$`
	order = strings.NewReplacer("YOUNG", strconv.Itoa(young), "OLD", strconv.Itoa(old)).Replace(order)
	if !regexp.MustCompile(order).MatchString(said.out) || strings.Contains(said.out, "hello") {
		t.Errorf("want %s\n%s", order, said.out)
	}
	if pid := s.PID(); pid != young {
		t.Errorf("process %d serves, want %d", pid, young)
	}
	l.WaitFor(young)
	if r := l.Stop(); r.Total.Failed != 0 || len(r.Processes) != 2 {
		t.Error(r)
	}
	if p := self(s.status(t)); p.PID != young || p.Version != "v2" || p.Generation != 2 {
		t.Errorf("%+v", p)
	}
}

// An upgrade takes the standby that is there, and starts nothing.
func TestUpgradePromotesAStandby(t *testing.T) {
	t.Parallel()
	s := start(t, "-probation", "100ms")
	young := s.standBy(t, "v2", "-probation", "100ms").First.Pid
	ctl(t, s.bySocket(), "upgrade").want(t, exitDone, "process "+strconv.Itoa(young)+" has stood by")
	ctl(t, s.bySocket(), "upgrade").want(t, exitDone, "hello") // there is none any more
}

func TestSwapGoesBackAndForth(t *testing.T) {
	t.Parallel()
	s := start(t, "-probation", "100ms")
	young := s.standBy(t, "v2", "-probation", "100ms")
	l := s.underLoad(t)
	// Each build's log is that of its first process.
	for i, next := range []service{young, s, young} {
		now := next.Now()
		ctl(t, s.bySocket(), "promote", "-swap").want(t, exitDone)
		if p := self(s.status(t)); p.Version != []string{"v2", "v1"}[i%2] || p.Generation != i+2 {
			t.Errorf("promotion %d: %+v", i, p)
		}
		l.WaitFor(s.PID())
		next.After(now, proctest.Logged("standby is ready"))
	}
	if r := l.Stop(); r.Total.Failed != 0 || len(r.Processes) != 4 {
		t.Error(r)
	}
}

func TestPromoteWithoutAStandbyIsBusy(t *testing.T) {
	t.Parallel()
	s := start(t, "-probation", "1m")
	old := s.PID()
	for _, args := range [][]string{{"promote"}, {"promote", "-swap"}} {
		ctl(t, s.bySocket(), args...).want(t, exitBusy, "busy: no standby is ready: start one with upgradectl standby -- COMMAND\n")
	}
	young := s.standBy(t, "v2")
	promote := begin(t, append(s.bySocket(), "promote")...)
	s.Wait(proctest.Changed(old, "probation"))
	ctl(t, s.bySocket(), "promote").want(t, exitBusy, "busy: an upgrade is under way\n")
	ctl(t, s.bySocket(), "rollback").want(t, exitDone)
	promote.end(t).want(t, exitRolledBack, "rolled back in phase probation", "an operator asked for it")
	young.WaitGone()
	if s.PID() != old {
		t.Errorf("process %d serves, want %d", s.PID(), old)
	}
}

// keep is upgradectl standby.
func keep(t *testing.T, control, address string, flags ...string) command {
	t.Helper()
	return stays(t, "standby", flags, "-control", control, "-pidfile", control+".pid", "-listen", address,
		"-probation", "100ms", "-drain-timeout", "10s")
}

// Of the log of a demo, in words for people.
var (
	servesAlone = regexp.MustCompile(`from=starting generation=1 pid=(\d+) to=serving`)
	standbyHere = regexp.MustCompile(`standby is ready pid=(\d+) standby=(\d+)`)
)

// pair is two of them: the first serves, the second stands by.
func pair(t *testing.T) (both [2]command, s service, target string) {
	t.Helper()
	s.control = filepath.Join(t.TempDir(), "control")
	address := freeAddress(t)
	both[0] = keep(t, s.control, address)
	both[0].waitFor(t, servesAlone, 1)
	both[1] = keep(t, s.control, address)
	both[0].waitFor(t, standbyHere, 1)
	return both, s, "http://" + address
}

func pidOf(t *testing.T, pid string) int {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func kill(t *testing.T, pid string) {
	t.Helper()
	if err := syscall.Kill(pidOf(t, pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// wantCode waits for the end of the command.
func (c command) wantCode(t *testing.T, code int) {
	t.Helper()
	_ = c.Wait() // the code says it
	if got := c.ProcessState.ExitCode(); got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
}

// TestServerIsKilledAgainAndAgain under load, and each time the other one serves
// and the next one stands by. No connection is refused. Then the service is
// stopped, which is no reason to start anything.
func TestServerIsKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	both, s, target := pair(t)
	l, err := load.Start(t.Context(), load.Config{Target: target, Clients: map[load.Kind]int{load.New: 8, load.Get: 4, load.Post: 4}})
	if err != nil {
		t.Fatal(err)
	}
	const times = 4
	for i := range times {
		serving, waiting := both[i%2], both[1-i%2]
		found := serving.waitFor(t, standbyHere, i/2+1)
		old, young := found[1], found[2]
		l.WaitFor(pidOf(t, old))
		from := time.Now()
		kill(t, old)
		waiting.waitFor(t, regexp.MustCompile(`from=waiting generation=`+strconv.Itoa(i+2)+` pid=`+young+` to=serving`), 1)
		l.WaitFor(pidOf(t, young))
		l.Crash(from, time.Now())
	}
	if r := l.Stop(); r.Total.Failed != 0 || len(r.Processes) != times+1 {
		t.Error(r)
	}
	both[times%2].waitFor(t, standbyHere, times/2+1)
	ctl(t, s.bySocket(), "stop").want(t, exitDone)
	for _, c := range both {
		c.wantCode(t, 0)
	}
}

// TestStandbyIsStartedAgain when it has died, and when it was promoted and
// then replaced by another one.
func TestStandbyIsStartedAgain(t *testing.T) {
	t.Parallel()
	both, s, _ := pair(t)
	kill(t, both[0].waitFor(t, standbyHere, 1)[2])
	young := both[0].waitFor(t, standbyHere, 2)[2]
	both[1].waitFor(t, regexp.MustCompile(`killed; restart in 100ms`), 1)
	stoodBy := [2]int{2, 0} // for each of them
	for i := range 4 {
		ctl(t, s.bySocket(), "promote").want(t, exitDone, "process "+young+" has replaced")
		serving := 1 - i%2
		stoodBy[serving]++
		young = both[serving].waitFor(t, standbyHere, stoodBy[serving])[2] // it was replaced, and has drained
	}
	promote := begin(t, append(s.bySocket(), "promote")...)
	promote.until(t, regexp.MustCompile("probation"))
	ctl(t, s.bySocket(), "rollback").want(t, exitDone)
	promote.end(t).want(t, exitRolledBack)
	both[0].waitFor(t, standbyHere, stoodBy[0]+1)
}

// A service that has got other sockets is no longer what a standby has: it starts
// anew.
func TestStandbyHasTheSocketsOfNow(t *testing.T) {
	t.Parallel()
	s := start(t, "-probation", "100ms")
	c := keep(t, s.control, "127.0.0.1:0", "-kill-after", "1s")
	s.Wait(proctest.Logged("standby is ready"))
	more := service{proctest.Spawn(t, proctest.Demo(t, "v2"), "-control", s.control, "-pidfile", s.control+".pid",
		"-listen", "127.0.0.1:0", "-listen", "127.0.0.1:0", "-probation", "100ms"), s.control}
	more.Wait(proctest.Logged("standby is ready"))
	c.waitFor(t, regexp.MustCompile(`the sockets of the service have changed, a standby must start anew`), 1)
	ctl(t, s.bySocket(), "promote").want(t, exitDone)
	if p := self(s.status(t)); p.Version != "v1" || p.Generation != 3 {
		t.Errorf("%+v", p)
	}
}

// A signal is for the process that is kept, whatever it is at that moment.
func TestSignalsOfAStandby(t *testing.T) {
	t.Parallel()
	both, s, _ := pair(t)
	young := both[0].waitFor(t, standbyHere, 1)[2]
	ctl(t, s.bySocket(), "promote").want(t, exitDone)
	both[1].waitFor(t, standbyHere, 1)
	if err := both[0].Process.Signal(syscall.SIGTERM); err != nil { // it stands by now
		t.Fatal(err)
	}
	both[0].wantCode(t, 0)
	if p := self(s.status(t)); strconv.Itoa(p.PID) != young || p.State != "serving" {
		t.Errorf("%+v", p)
	}
	ctl(t, s.bySocket(), "promote").want(t, exitBusy, "no standby is ready")
	if err := both[1].Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	both[1].waitFor(t, regexp.MustCompile(`main process is \d+, was `+young), 1)
	both[1].waitFor(t, regexp.MustCompile(`from="on probation" generation=3 pid=\d+ to=serving`), 1)
	if err := both[1].Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	both[1].wantCode(t, 0)
}

// A supervised server that is replaced by a process from elsewhere has not failed.
func TestSuperviseEndsWhenTheServiceGoesOnElsewhere(t *testing.T) {
	t.Parallel()
	control := filepath.Join(t.TempDir(), "control")
	c := stays(t, "supervise", []string{"-restart", "on-failure"}, "-control", control, "-listen", "127.0.0.1:0", "-probation", "100ms")
	c.waitFor(t, servesAlone, 1)
	next := proctest.Spawn(t, proctest.Demo(t, "v2"), "-control", control)
	next.Wait(proctest.Changed(next.First.Pid, "serving"))
	c.wantCode(t, 0)
	if p := self(service{control: control}.status(t)); p.PID != next.First.Pid || p.State != "serving" {
		t.Errorf("%+v", p)
	}
}

func TestStandbyThatIsNotRestartedHasItsExitCode(t *testing.T) {
	t.Parallel()
	control, address := filepath.Join(t.TempDir(), "control"), freeAddress(t)
	c := keep(t, control, address, "-restart", "no")
	pid := c.waitFor(t, servesAlone, 1)[1]
	kill(t, pid)
	c.wantCode(t, 137)
	if err := os.WriteFile(control+"2", nil, 0o600); err != nil { // it is no socket
		t.Fatal(err)
	}
	keep(t, control+"2", address, "-restart", "no").wantCode(t, 1)
}
