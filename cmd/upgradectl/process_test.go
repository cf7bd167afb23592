//go:build unix

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
	"github.com/go-handover/handover/internal/wire"
	"github.com/go-handover/handover/upgrader"
)

// These tests run upgradectl and the demo as processes.

// service is a demo with a control socket.
type service struct {
	*proctest.Server
	control string
}

func start(t *testing.T, args ...string) service {
	t.Helper()
	control := filepath.Join(t.TempDir(), "control")
	args = append([]string{"-control", control, "-drain-timeout", "10s"}, args...)
	return service{proctest.Start(t, proctest.Demo(t, "v1"), args...), control}
}

// bySocket and byPIDFile are the two ways to name it.
func (s service) bySocket() []string  { return []string{"-socket", s.control} }
func (s service) byPIDFile() []string { return []string{"-pidfile", s.PIDFile} }

// command is upgradectl as a process that has started.
type command struct {
	*exec.Cmd
	out, errs *output
}

// output is what a command has written until now.
type output struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // has room for one: there is more
}

func newOutput() *output { return &output{more: make(chan struct{}, 1)} }

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.more <- struct{}{}:
	default:
	}
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// until waits until the command has said it.
func (c command) until(t *testing.T, what *regexp.Regexp) {
	t.Helper()
	limit := time.After(patience)
	for !what.MatchString(c.out.String()) {
		select {
		case <-c.out.more:
		case <-limit:
			t.Fatalf("it does not say %s:\n%s", what, c.out.String())
		}
	}
}

func begin(t *testing.T, args ...string) command {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	c := command{exec.CommandContext(ctx, os.Args[0], args...), newOutput(), newOutput()}
	c.Env = append(os.Environ(), asUpgradectl+"=1")
	c.Stdout, c.Stderr = c.out, c.errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = c.Wait() // it may have been waited for
	})
	return c
}

func (c command) end(t *testing.T) said {
	t.Helper()
	if err := c.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return said{c.ProcessState.ExitCode(), c.out.String(), c.errs.String()}
}

func ctl(t *testing.T, server []string, args ...string) said {
	t.Helper()
	return begin(t, append(server, args...)...).end(t)
}

func (s service) status(t *testing.T) upgrader.Status {
	t.Helper()
	said := ctl(t, s.bySocket(), "status", "-json")
	said.want(t, exitDone)
	var status upgrader.Status
	if err := json.Unmarshal([]byte(said.out), &status); err != nil {
		t.Fatalf("%v\n%s", err, said.out)
	}
	return status
}

// file is a binary that is none.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "new")
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUpgradeOfARealServer(t *testing.T) {
	t.Parallel()
	s := start(t, "-probation", "300ms")
	old := s.PID()
	s.Replace(proctest.Demo(t, "v2"))
	said := ctl(t, s.bySocket(), "upgrade")
	said.want(t, exitDone)
	young := s.PID()
	order := `(?s)prepare.*hello +process YOUNG.*ready.*commit.*probation.*done +process YOUNG has replaced process OLD\n$`
	order = strings.NewReplacer("YOUNG", strconv.Itoa(young), "OLD", strconv.Itoa(old)).Replace(order)
	if young == old || !regexp.MustCompile(order).MatchString(said.out) {
		t.Errorf("want %s\n%s", order, said.out)
	}
	status := s.status(t)
	if p := self(status); p.PID != young || p.Version != "v2" || p.Generation != 2 || p.State != "serving" {
		t.Errorf("%+v", p)
	}
	if status.Last == nil || status.Last.Result != upgrader.Upgraded || status.Last.PID != young || status.Counters.Upgrades != 1 {
		t.Errorf("%+v", status)
	}
	ctl(t, s.bySocket(), "status").want(t, exitDone, "v2", "http-0", "last upgrade  upgraded, process "+strconv.Itoa(young), "1 done, 0 failed")
}

// Each way in which a binary can fail, in each phase, by socket and by pidfile.
func TestBinariesThatFail(t *testing.T) {
	t.Parallel()
	faulty := func(fault string) func(*testing.T) string {
		return func(t *testing.T) string { t.Helper(); return proctest.Faulty(t, fault) }
	}
	for _, test := range []struct {
		name    string
		replace func(*testing.T) string // nil: it is removed
		code    int
		phase   upgrader.Phase
		text    string
	}{
		{"missing", nil, exitFailed, upgrader.PhasePrepare, "no such file"},
		{"empty", func(t *testing.T) string { t.Helper(); return file(t, "") }, exitFailed, upgrader.PhasePrepare, "empty"},
		{"garbage", func(t *testing.T) string { t.Helper(); return file(t, "garbage") }, exitFailed, upgrader.PhasePrepare, "exec format error"},
		{"not a server", func(t *testing.T) string { t.Helper(); return file(t, "#!/bin/sh\nexit 7\n") }, exitFailed, upgrader.PhaseHello, "exit status 7"},
		{"crash at once", faulty("crash-at-once"), exitFailed, upgrader.PhaseHello, "exit status 2"},
		{"crash before ready", faulty("crash-before-ready"), exitFailed, upgrader.PhaseReady, "exit status 2"},
		{"hang before ready", faulty("hang-before-ready"), exitFailed, upgrader.PhaseReady, "limit reached"},
		{"crash after ready", faulty("crash-after-ready:1s"), exitRolledBack, upgrader.PhaseProbation, "exit status 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, "-probation", "5s", "-ready-timeout", "1s")
			old := s.PID()
			replace := func() {
				t.Helper()
				if test.replace != nil {
					s.Replace(test.replace(t))
				} else if err := os.Remove(s.Path); err != nil {
					t.Fatal(err)
				}
			}
			replace()
			said := ctl(t, s.bySocket(), "upgrade")
			said.want(t, test.code, "in phase "+string(test.phase), test.text, "serving    process "+strconv.Itoa(old))
			status := s.status(t)
			if s.PID() != old || status.Last == nil || status.Last.Phase != test.phase {
				t.Errorf("process %d serves, was %d; %+v", s.PID(), old, status.Last)
			}
			if test.replace == nil {
				return // once is enough
			}
			ctl(t, s.byPIDFile(), "upgrade").want(t, test.code, "process "+strconv.Itoa(old)+" serves", "the server's log has the reason")
			after := s.status(t).Counters
			if after.Failures+after.Rollbacks != 2 || after.Upgrades != 0 {
				t.Errorf("%+v", after)
			}
			s.Replace(proctest.Demo(t, "v2"))
			upgrade := begin(t, append(s.bySocket(), "upgrade")...)
			upgrade.until(t, regexp.MustCompile("probation"))
			ctl(t, s.bySocket(), "confirm").want(t, exitDone)
			upgrade.end(t).want(t, exitDone)
		})
	}
}

func TestUpgradeByPIDFileAlone(t *testing.T) {
	t.Parallel()
	for _, probation := range []string{"1s", "-1s"} {
		s := proctest.Start(t, proctest.Demo(t, "v1"), "-probation", probation)
		old := s.PID()
		said := ctl(t, []string{"-pidfile", s.PIDFile}, "upgrade")
		said.want(t, exitDone, "prepare", "process "+strconv.Itoa(s.PID())+" has replaced process "+strconv.Itoa(old))
		if s.PID() == old {
			t.Error("the pidfile names the old process")
		}
		if probation == "1s" && !strings.Contains(said.out, "probation") {
			t.Errorf("no probation:\n%s", said.out)
		}
	}
}

func TestSecondUpgradeIsBusy(t *testing.T) {
	t.Parallel()
	s := start(t, "-probation", "3s", "-ready-delay", "3s")
	now := s.Now()
	first := begin(t, append(s.bySocket(), "upgrade")...)
	for _, m := range []proctest.Match{proctest.Logged("listening"), proctest.Changed(s.PID(), "probation")} {
		s.After(now, m)
		ctl(t, s.bySocket(), "upgrade").want(t, exitBusy, "busy: an upgrade is under way")
		ctl(t, s.byPIDFile(), "upgrade").want(t, exitBusy, "busy: an upgrade of process")
	}
	first.end(t).want(t, exitDone)
}

func TestRollbackAndConfirm(t *testing.T) {
	t.Parallel()
	s := start(t, "-probation", "1m")
	old := s.PID()
	for _, verb := range []string{wire.VerbRollback, wire.VerbConfirm} {
		ctl(t, s.bySocket(), verb).want(t, exitBusy, "no upgrade is on probation")
	}

	now := s.Now()
	upgrade := begin(t, append(s.bySocket(), "upgrade")...)
	s.After(now, proctest.Changed(old, "probation"))
	ctl(t, s.bySocket(), "rollback").want(t, exitDone, "rolled back")
	upgrade.end(t).want(t, exitRolledBack, "rolled back in phase probation", "an operator asked for it")
	if s.PID() != old {
		t.Errorf("process %d serves, want %d", s.PID(), old)
	}

	byPIDFile := begin(t, append(s.byPIDFile(), "upgrade")...)
	byPIDFile.until(t, regexp.MustCompile("probation"))
	ctl(t, s.bySocket(), "rollback").want(t, exitDone, "rolled back")
	byPIDFile.end(t).want(t, exitRolledBack, "process "+strconv.Itoa(old)+" serves again")

	now = s.Now()
	upgrade = begin(t, append(s.bySocket(), "upgrade")...)
	s.After(now, proctest.Changed(old, "probation"))
	ctl(t, s.bySocket(), "confirm").want(t, exitDone, "confirmed")
	upgrade.end(t).want(t, exitDone, "has replaced process "+strconv.Itoa(old))
	if c := s.status(t).Counters; c.Upgrades != 1 || c.Rollbacks != 2 {
		t.Errorf("%+v", c)
	}
}

func TestRollbackBeforeReady(t *testing.T) {
	t.Parallel()
	s := start(t)
	old := s.PID()
	s.Replace(proctest.Faulty(t, "hang-before-ready"))
	upgrade := begin(t, append(s.bySocket(), "upgrade")...)
	upgrade.until(t, regexp.MustCompile(" ready "))
	ctl(t, s.bySocket(), "confirm").want(t, exitBusy, "no upgrade is on probation")
	ctl(t, s.bySocket(), "rollback").want(t, exitDone, "given up")
	upgrade.end(t).want(t, exitFailed, "failed in phase ready", "an operator asked for it")
	if c := s.status(t).Counters; s.PID() != old || c.Failures != 1 || c.Rollbacks != 0 {
		t.Errorf("process %d serves, want %d: %+v", s.PID(), old, c)
	}
}

func TestNoWaitOfARealServer(t *testing.T) {
	t.Parallel()
	for _, server := range []func(service) []string{service.bySocket, service.byPIDFile} {
		s := start(t, "-probation", "100ms", "-ready-delay", "500ms")
		old := s.PID()
		ctl(t, server(s), "upgrade", "-no-wait").want(t, exitDone, "begun")
		s.Wait(proctest.Changed(old, "draining"))
	}
}

func TestWatchSeesAnUpgrade(t *testing.T) {
	t.Parallel()
	s := start(t, "-probation", "300ms")
	watch := begin(t, append(s.bySocket(), "status", "-watch")...)
	watch.until(t, regexp.MustCompile("serving"))
	ctl(t, s.bySocket(), "upgrade").want(t, exitDone)
	ctl(t, s.bySocket(), "stop").want(t, exitDone)
	said := watch.end(t)
	said.want(t, exitUnreachable, "last upgrade  upgraded", "draining")
}

func TestStopOfARealServer(t *testing.T) {
	t.Parallel()
	for _, server := range []func(service) []string{service.bySocket, service.byPIDFile} {
		s := start(t)
		pid := s.PID()
		ctl(t, server(s), "stop").want(t, exitDone, "stopped: process "+strconv.Itoa(pid))
		if code := s.ExitCode(); code != 0 {
			t.Errorf("the server exits %d", code)
		}
		ctl(t, server(s), "stop").want(t, exitUnreachable)
		ctl(t, server(s), "upgrade").want(t, exitUnreachable)
	}
}

func TestStopOfBothProcesses(t *testing.T) {
	t.Parallel()
	for _, server := range []func(service) []string{service.bySocket, service.byPIDFile} {
		s := start(t, "-probation", "1m")
		old := s.PID()
		upgrade := begin(t, append(s.bySocket(), "upgrade")...)
		s.Wait(proctest.Changed(old, "probation"))
		ctl(t, server(s), "stop").want(t, exitDone, "stopped: processes", strconv.Itoa(old))
		s.WaitGone()
		upgrade.end(t).want(t, exitUnreachable)
	}
}

// occupy gives the process that serves a request that keeps it busy until the
// end of the test.
func (s service) occupy(t *testing.T) {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr("http-0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, "GET /stream?ms=60000 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil { // it has begun to answer
		t.Fatal(err)
	}
}

func TestStatusShowsThreeGenerations(t *testing.T) {
	t.Parallel()
	s := start(t, "-probation", "100ms", "-drain-timeout", "5m")
	pids := []int{s.PID()}
	for _, version := range []string{"v2", "v3"} {
		s.occupy(t)
		s.Replace(proctest.Demo(t, version))
		ctl(t, s.bySocket(), "upgrade").want(t, exitDone)
		pids = append(pids, s.PID())
	}
	s.occupy(t)
	// The oldest is told of by the one between them, once a second.
	watch := begin(t, append(s.bySocket(), "status", "-watch")...)
	row := func(generation int, state string) string {
		return fmt.Sprintf(`\n%d +%d +v%d +\S+ +%s +\S+ \(\d+s ago\) +1 +`, generation, pids[generation-1], generation, state)
	}
	all := regexp.MustCompile(row(3, "serving") + `-` + row(2, "draining") + `in 4m\d+s` + row(1, "draining") + `in 4m\d+s`)
	watch.until(t, all)
	ctl(t, s.bySocket(), "status").want(t, exitDone, "2 done, 0 failed, 0 rolled back")
	ctl(t, s.bySocket(), "stop", "-timeout", "1500ms").want(t, exitFailed, "not gone in time (-timeout): processes ")
}

// A server that is busy with a request does not end at once.
func TestStopThatTakesTooLong(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.occupy(t)
	ctl(t, s.bySocket(), "stop", "-timeout", "1500ms").want(t, exitFailed,
		"not gone in time (-timeout): process "+strconv.Itoa(s.First.Pid), "upgradectl: 1 s: process "+strconv.Itoa(s.First.Pid)+" drain")
}

func TestUpgradeThatHasNoVerdictInTime(t *testing.T) {
	t.Parallel()
	s := start(t, "-probation", "1m")
	ctl(t, s.bySocket(), "upgrade", "-timeout", "4s").want(t, exitFailed, "no verdict in time", "probation", "upgradectl: 1 s: probation: it serves")
	ctl(t, s.bySocket(), "rollback").want(t, exitDone)
	ctl(t, s.byPIDFile(), "upgrade", "-timeout", "4s").want(t, exitFailed, "no verdict in time", "upgradectl: 1 s: probation: process")
	ctl(t, s.bySocket(), "confirm").want(t, exitDone)
}

// A process that is stopped by the system is there, and does not answer.
func TestStoppedProcessIsNotReachable(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.Signal(s.PID(), syscall.SIGSTOP)
	defer s.Signal(s.PID(), syscall.SIGCONT)
	ctl(t, s.bySocket(), "status", "-timeout", "300ms").want(t, exitUnreachable, "no answer in time", "stopped or overloaded")
}

// The old process dies while the upgrade is under way: the new one has the
// verdict.
func TestVerdictOfAServerThatWasKilled(t *testing.T) {
	t.Parallel()
	s := start(t, "-probation", "1m")
	old := s.PID()
	upgrade := begin(t, append(s.bySocket(), "upgrade")...)
	s.Wait(proctest.Changed(old, "probation"))
	s.Signal(old, syscall.SIGKILL)
	said := upgrade.end(t)
	said.want(t, exitDone, "process "+strconv.Itoa(s.PID())+" has replaced process "+strconv.Itoa(old))
}

func TestServerThatIsKilledBeforeTheVerdict(t *testing.T) {
	t.Parallel()
	for _, server := range []func(service) []string{service.bySocket, service.byPIDFile} {
		s := start(t)
		old := s.PID()
		s.Replace(proctest.Faulty(t, "hang-before-ready"))
		upgrade := begin(t, append(server(s), "upgrade", "-timeout", "20s")...)
		s.Wait(proctest.Changed(old, "upgrading"))
		s.Signal(old, syscall.SIGTERM)
		upgrade.end(t).want(t, exitUnreachable)
		s.WaitGone()
	}
}

func TestPIDFilesThatNameNoServer(t *testing.T) {
	pidfile := func(text string) string {
		path := filepath.Join(t.TempDir(), "app.pid")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	stranger := child(t) // it would die of SIGUSR1
	for name, test := range map[string]struct{ path, text string }{
		"missing":  {filepath.Join(t.TempDir(), "none"), "with Options.PIDFile set to this path"},
		"empty":    {pidfile(""), `"" is not a pid`},
		"garbage":  {pidfile("-1\n"), `"-1\n" is not a pid`},
		"stranger": {pidfile(strconv.Itoa(stranger.Process.Pid)), "is stale"},
		"long":     {pidfile(strings.Repeat("9", 100)), "is not a pid"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, verb := range []string{"upgrade", "stop"} {
				runIn(t, "-pidfile", test.path, verb).want(t, exitUnreachable, "no server: ", test.text, test.path)
			}
		})
	}
	if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the stranger was harmed: %v", err)
	}
}

// Of a second uid nothing is accepted: not by the socket's mode, and not by the
// server, if somebody has changed that.
func TestOtherUserIsRefused(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	s := start(t)
	binary := filepath.Join(openDir(t), "upgradectl")
	content, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := proctest.WriteBinary(binary, content); err != nil {
		t.Fatal(err)
	}
	asNobody := func(verb string) said {
		t.Helper()
		c := command{exec.CommandContext(t.Context(), binary, "-socket", s.control, verb), newOutput(), newOutput()}
		c.Env = append(os.Environ(), asUpgradectl+"=1")
		c.Stdout, c.Stderr = c.out, c.errs
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c.end(t)
	}
	open(t, filepath.Dir(s.control))
	for _, verb := range []string{"status", "upgrade", "stop"} {
		asNobody(verb).want(t, exitUnreachable, "permission denied: be the user that the server runs as, or root")
	}
	if err := os.Chmod(s.control, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"status", "upgrade", "stop"} {
		asNobody(verb).want(t, exitUnreachable, "the server refuses: uid 65534 may not control this process")
	}
	if self(s.status(t)).State != "serving" {
		t.Error("it had an effect")
	}
}

// openDir is a directory that everybody can search.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	open(t, dir)
	return dir
}

// open lets everybody search a directory of t.TempDir.
func open(t *testing.T, dir string) {
	t.Helper()
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}
