//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/client/fake"
	"github.com/go-handover/handover/internal/wire"
	"github.com/go-handover/handover/upgrader"
)

// These tests speak to a server that does what they say. process_test.go has
// the real one.

type answers = map[string]func(*fake.Conn)

// serving is the status of a process that serves, after an upgrade or none.
func serving(pid int, last *upgrader.Verdict) upgrader.Status {
	return upgrader.Status{
		Processes: []upgrader.Process{{Generation: 1, PID: pid, Self: true, State: "serving"}},
		Last:      last,
		Log:       "/var/log/app.log",
	}
}

var (
	before = serving(4711, nil)

	succeeded = &upgrader.Verdict{Result: upgrader.Upgraded, PID: 4712, Ended: now, Duration: 5213 * time.Millisecond}
	failed    = &upgrader.Verdict{
		Result: upgrader.Failed, PID: 4712, Phase: upgrader.PhaseReady, Ended: now, Duration: 512 * time.Millisecond,
		Reason: "upgrader: ready: /srv/app (pid 4712): it gave up; it said: no database\nno cache", Text: "no database\nno cache",
	}
	rolledBack = &upgrader.Verdict{
		Result: upgrader.RolledBack, PID: 4712, Phase: upgrader.PhaseProbation, Ended: now, Duration: 1512 * time.Millisecond, Reason: "it ended",
	}
)

// listen has the status from before the request.
func listen(t *testing.T, do answers) *fake.Server {
	t.Helper()
	s := fake.Listen(t, do)
	if do[wire.VerbStatus] == nil {
		s.On(wire.VerbStatus, fake.Answering(wire.ResultDone, "", before))
	}
	return s
}

func TestEachResultHasItsExitCode(t *testing.T) {
	for _, verb := range []string{wire.VerbUpgrade, wire.VerbRollback, wire.VerbConfirm} {
		for result, want := range map[string]int{
			wire.ResultDone: 0, wire.ResultFailed: 1, wire.ResultBusy: 2, wire.ResultRolledBack: 3,
			wire.ResultGone: 4, wire.ResultRefused: 4, "of a later version": 1,
		} {
			t.Run(verb+", "+result, func(t *testing.T) {
				s := listen(t, answers{verb: fake.Answering(result, "upgrader: as told", before)})
				said := runIn(t, "-socket", s.Path, verb)
				said.want(t, want)
				if want != 0 && (!strings.Contains(said.errors, ": as told") || strings.Contains(said.errors, "upgrader:")) {
					t.Errorf("it does not say why: %s", said.errors)
				}
			})
		}
	}
}

func TestStatusThatIsRefused(t *testing.T) {
	s := fake.Listen(t, answers{
		wire.VerbStatus: fake.Answering(wire.ResultRefused, "uid 7 may not", upgrader.Status{}),
		wire.VerbWatch:  fake.Answering(wire.ResultRefused, "uid 7 may not", upgrader.Status{}),
	})
	for _, args := range [][]string{{"status"}, {"status", "-json"}, {"status", "-watch"}} {
		runIn(t, append(args, "-socket", s.Path)...).want(t, exitUnreachable, "the server refuses: uid 7 may not")
	}
}

// phases sends those of an upgrade, up to one.
func phases(c *fake.Conn, last upgrader.Phase) {
	for i, p := range []upgrader.Phase{
		upgrader.PhasePrepare, upgrader.PhaseHello, upgrader.PhaseReady, upgrader.PhaseCommit, upgrader.PhaseProbation,
	} {
		e := upgrader.Event{Kind: upgrader.EventPhase, Phase: p, PID: 4711, Elapsed: time.Duration(i) * 101 * time.Millisecond}
		if p != upgrader.PhasePrepare {
			e.Successor = 4712
		}
		c.Event(e)
		if p == last {
			return
		}
	}
}

func TestUpgradePrintsThePhases(t *testing.T) {
	s := listen(t, answers{wire.VerbUpgrade: func(c *fake.Conn) {
		phases(c, upgrader.PhaseProbation)
		c.Answer(wire.ResultDone, "", serving(4711, succeeded))
	}})
	said := runIn(t, "-socket", s.Path, "upgrade")
	said.want(t, exitDone)
	golden(t, "upgrade.txt", said.out)
	if said.errors != "" {
		t.Errorf("on standard error: %s", said.errors)
	}
}

// An operator learns when, why, what the new process says, and where to look.
func TestFailureSaysAll(t *testing.T) {
	for name, test := range map[string]struct {
		at     upgrader.Phase
		result string
		text   string
		last   *upgrader.Verdict
		code   int
	}{
		"failed":      {upgrader.PhaseReady, wire.ResultFailed, failed.Reason, failed, exitFailed},
		"rolled-back": {upgrader.PhaseProbation, wire.ResultRolledBack, "upgrader: probation: /srv/app (pid 4712): it ended (exit status 2)", rolledBack, exitRolledBack},
	} {
		t.Run(name, func(t *testing.T) {
			s := listen(t, answers{wire.VerbUpgrade: func(c *fake.Conn) {
				phases(c, test.at)
				c.Answer(test.result, test.text, serving(4711, test.last))
			}})
			said := runIn(t, "-socket", s.Path, "upgrade")
			said.want(t, test.code)
			golden(t, "upgrade-"+name+".txt", said.errors)
		})
	}
}

func TestLogThatIsNoFile(t *testing.T) {
	for name, want := range map[string]string{
		"":               "",
		"/var/log/x":     "/var/log/x",
		"pipe:[123]":     "pipe:[123]",
		"socket:[56789]": "socket:[56789]; if that is the journal: journalctl _PID=4712",
	} {
		if got := logHint(name, 4712); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestNoWaitReturnsWhenItHasBegun(t *testing.T) {
	closed := make(chan struct{})
	s := listen(t, answers{wire.VerbUpgrade: func(c *fake.Conn) {
		c.Event(upgrader.Event{Kind: upgrader.EventState, From: "serving", To: "upgrading"})
		phases(c, upgrader.PhasePrepare)
		c.UntilClosed()
		close(closed)
	}})
	runIn(t, "-socket", s.Path, "upgrade", "-no-wait").want(t, exitDone, "prepare", "begun")
	<-closed
	s.On(wire.VerbUpgrade, fake.Answering(wire.ResultBusy, "upgrader: an upgrade is under way", before))
	runIn(t, "-socket", s.Path, "upgrade", "-no-wait").want(t, exitBusy, "busy: an upgrade is under way")
}

func TestServersThatAreNone(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(*fake.Conn)
		text string
	}{
		"garbage": {func(c *fake.Conn) { c.Raw.Write([]byte("220 smtp ESMTP\r\n")) }, "is it the control socket"},
		"ends":    {func(*fake.Conn) {}, "without an answer"},
		"silent":  {(*fake.Conn).UntilClosed, "no answer"},
	} {
		for _, args := range [][]string{{"status"}, {"status", "-watch"}, {"upgrade"}, {"rollback"}, {"confirm"}, {"stop"}} {
			if name == "ends" && len(args) == 2 {
				continue // that is what a watched process does when it is replaced
			}
			t.Run(name+", "+strings.Join(args, " "), func(t *testing.T) {
				s := fake.Listen(t, answers{wire.VerbStatus: test.do, wire.VerbWatch: test.do})
				runIn(t, append(args, "-socket", s.Path, "-timeout", "300ms")...).want(t, exitUnreachable, test.text)
			})
		}
	}
}

func TestNoServerAtAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none")
	for _, args := range [][]string{{"status"}, {"status", "-watch"}, {"upgrade"}, {"rollback"}, {"confirm"}, {"stop"}} {
		runIn(t, append(args, "-socket", path)...).want(t, exitUnreachable, path, "is one running, with Options.ControlSocket")
	}
	t.Setenv(socketVariable, path)
	runIn(t, "status").want(t, exitUnreachable, path)
	runIn(t, "status", "-socket", path+"2").want(t, exitUnreachable, path+"2") // the flag is stronger
}

// The answer goes with the process that was asked; the next one knows it too.
func TestVerdictOfAProcessThatHasEnded(t *testing.T) {
	earlier := *succeeded
	earlier.Ended = ago(time.Hour)
	onProbation := serving(4712, &earlier)
	onProbation.Processes[0].State = "on probation"
	for name, test := range map[string]struct {
		watch func(*fake.Conn)
		code  int
		text  string
	}{
		"upgraded": {func(c *fake.Conn) {
			c.Status(onProbation)
			c.Status(serving(4712, succeeded))
			c.UntilClosed()
		}, exitDone, "process 4712 has replaced process 4711"},
		"rolled back":    {func(c *fake.Conn) { c.Status(serving(4711, rolledBack)) }, exitRolledBack, "rolled back in phase probation"},
		"failed":         {func(c *fake.Conn) { c.Status(serving(4711, failed)) }, exitFailed, "no database"},
		"knows nothing":  {func(c *fake.Conn) { c.Status(serving(4713, &earlier)) }, exitUnreachable, "process 4713, which serves, knows of no upgrade"},
		"refuses":        {fake.Answering(wire.ResultRefused, "uid 7", upgrader.Status{}), exitUnreachable, "the server refuses: uid 7"},
		"is no server":   {func(c *fake.Conn) { c.Raw.Write([]byte("garbage")) }, exitUnreachable, "is it the control socket"},
		"never confirms": {func(c *fake.Conn) { c.Status(onProbation); c.UntilClosed() }, exitFailed, "no verdict in time (-timeout); the upgrade may go on: process 4711: serving"},
	} {
		t.Run(name, func(t *testing.T) {
			s := listen(t, answers{
				wire.VerbStatus:  fake.Answering(wire.ResultDone, "", serving(4711, &earlier)),
				wire.VerbUpgrade: func(c *fake.Conn) { phases(c, upgrader.PhaseProbation) },
				wire.VerbWatch:   test.watch,
			})
			limit := patience.String()
			if name == "never confirms" {
				limit = "300ms"
			}
			runIn(t, "-socket", s.Path, "upgrade", "-timeout", limit).want(t, test.code, test.text)
		})
	}
}

// Two processes may end before one has the verdict.
func TestVerdictIsAskedForAgainAndAgain(t *testing.T) {
	s := listen(t, answers{wire.VerbUpgrade: func(*fake.Conn) {}})
	var asked atomic.Int32
	s.On(wire.VerbWatch, func(c *fake.Conn) {
		switch asked.Add(1) {
		case 1:
			c.Answer(wire.ResultGone, "upgrader: replaced by a new process", before)
		case 2: // ends
		default:
			c.Status(serving(4712, succeeded))
		}
	})
	runIn(t, "-socket", s.Path, "upgrade").want(t, exitDone, "process 4712 has replaced")
	if n := asked.Load(); n != 3 {
		t.Errorf("asked %d times, want 3", n)
	}
}

func TestVerdictThatCameAsAnEventIsEnough(t *testing.T) {
	s := listen(t, answers{wire.VerbUpgrade: func(c *fake.Conn) {
		phases(c, upgrader.PhaseReady)
		c.Event(upgrader.Event{Kind: upgrader.EventVerdict, Verdict: failed})
	}})
	runIn(t, "-socket", s.Path, "upgrade").want(t, exitFailed, "failed in phase ready after 0.512 s", "no database", "/var/log/app.log")
}

func TestServerThatEndsDuringTheUpgrade(t *testing.T) {
	s := listen(t, nil)
	s.On(wire.VerbUpgrade, func(*fake.Conn) { s.End() })
	runIn(t, "-socket", s.Path, "upgrade").want(t, exitUnreachable, "no server has opened it")
}

func TestUpgradeWithoutAVerdict(t *testing.T) {
	hello := func(c *fake.Conn) {
		phases(c, upgrader.PhaseHello)
		c.UntilClosed()
	}
	t.Run("the server answers", func(t *testing.T) {
		s := listen(t, answers{wire.VerbUpgrade: hello})
		runIn(t, "-socket", s.Path, "upgrade", "-timeout", "200ms").want(t, exitFailed, "no verdict in time", "process 4711: serving")
	})
	t.Run("the server does not", func(t *testing.T) {
		s := listen(t, nil)
		s.On(wire.VerbUpgrade, func(c *fake.Conn) {
			s.On(wire.VerbStatus, func(*fake.Conn) {})
			hello(c)
		})
		runIn(t, "-socket", s.Path, "upgrade", "-timeout", "200ms").want(t, exitUnreachable, "no answer in time")
	})
}

func TestInterruptionSaysThatItGoesOn(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	s := listen(t, answers{wire.VerbUpgrade: func(c *fake.Conn) {
		phases(c, upgrader.PhaseHello)
		interrupt()
		c.UntilClosed()
	}})
	var out, errs bytes.Buffer
	said := said{run(ctx, []string{"-socket", s.Path, "upgrade"}, &out, &errs), out.String(), errs.String()}
	said.want(t, exitFailed, "interrupted: the upgrade goes on")
}

// Who ends probation is told so, by the next process if need be.
func TestEndOfProbationIsToldByTheNextProcess(t *testing.T) {
	for verb, test := range map[string]struct {
		last *upgrader.Verdict
		code int
		text string
	}{
		wire.VerbRollback:        {rolledBack, exitDone, "rolled back"},
		wire.VerbConfirm:         {succeeded, exitDone, "confirmed"},
		wire.VerbRollback + " ":  {succeeded, exitDone, ""},
		wire.VerbConfirm + "  ":  {rolledBack, exitRolledBack, "rolled back"},
		wire.VerbConfirm + "   ": {failed, exitFailed, "failed"},
	} {
		t.Run(verb, func(t *testing.T) {
			verb := strings.TrimSpace(verb)
			s := listen(t, answers{verb: func(*fake.Conn) {}, wire.VerbWatch: func(c *fake.Conn) { c.Status(serving(4711, test.last)) }})
			runIn(t, "-socket", s.Path, verb).want(t, test.code, test.text)
		})
	}
}

func TestWatchFollowsFromProcessToProcess(t *testing.T) {
	s := fake.Listen(t, answers{})
	var asked atomic.Int32
	s.On(wire.VerbWatch, func(c *fake.Conn) {
		switch asked.Add(1) {
		case 1:
			c.Status(statuses["first"])
			c.Status(statuses["first"])
			c.Answer(wire.ResultGone, "upgrader: replaced", statuses["first"])
		case 2:
			c.Status(statuses["three"])
			s.End()
		}
	})
	said := runIn(t, "-socket", s.Path, "status", "-watch")
	said.want(t, exitUnreachable, "no server has opened it")
	if n := strings.Count(said.out, "GENERATION"); n != 2 || !strings.Contains(said.out, "4713") {
		t.Errorf("%d blocks, want 2:\n%s", n, said.out)
	}
}

func TestInterruptedWatchIsNoFailure(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	s := fake.Listen(t, answers{wire.VerbWatch: func(c *fake.Conn) {
		c.Status(before)
		interrupt()
		c.UntilClosed()
	}})
	var out, errs bytes.Buffer
	said := said{run(ctx, []string{"-socket", s.Path, "status", "-watch"}, &out, &errs), out.String(), errs.String()}
	said.want(t, exitDone)
}

// child is a process whose end is waited for, and which is not reaped before
// the test ends.
func child(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return cmd
}

func TestStopWaitsForAllProcesses(t *testing.T) {
	old, young, late := child(t), child(t), child(t)
	there := func(pids ...int) upgrader.Status {
		var s upgrader.Status
		for _, pid := range pids {
			s.Processes = append(s.Processes, upgrader.Process{PID: pid, State: "serving"})
		}
		return s
	}
	s := listen(t, answers{
		wire.VerbStatus: fake.Answering(wire.ResultDone, "", there(young.Process.Pid, old.Process.Pid)),
		wire.VerbStop: func(c *fake.Conn) {
			c.Answer(wire.ResultDone, "", there(late.Process.Pid, young.Process.Pid))
		},
	})
	stopped := make(chan said, 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() {
		var out, errs bytes.Buffer
		code := run(ctx, []string{"-socket", s.Path, "stop"}, &out, &errs)
		stopped <- said{code, out.String(), errs.String()}
	}()
	for _, c := range []*exec.Cmd{young, late, old} {
		select {
		case said := <-stopped:
			t.Fatalf("it returned before process %d has ended: %+v", c.Process.Pid, said)
		case <-time.After(100 * time.Millisecond):
		}
		_ = c.Process.Kill()
	}
	said := <-stopped
	said.want(t, exitDone, "stopped: processes ")
}

func TestStopHasALimit(t *testing.T) {
	c, ended := child(t), child(t)
	s := listen(t, answers{
		wire.VerbStatus: fake.Answering(wire.ResultDone, "", upgrader.Status{Processes: []upgrader.Process{
			{PID: ended.Process.Pid}, {PID: c.Process.Pid},
		}}),
		wire.VerbStop: func(*fake.Conn) { _ = ended.Process.Kill() }, // and no answer
	})
	said := runIn(t, "-socket", s.Path, "stop", "-timeout", "500ms")
	said.want(t, exitFailed, "not gone in time (-timeout): process ")
	if err := c.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the process was harmed: %v", err)
	}
}

func TestStopThatIsRefused(t *testing.T) {
	s := listen(t, answers{
		wire.VerbStatus: fake.Answering(wire.ResultDone, "", upgrader.Status{}),
		wire.VerbStop:   fake.Answering(wire.ResultRefused, "uid 7", upgrader.Status{}),
	})
	runIn(t, "-socket", s.Path, "stop").want(t, exitUnreachable, "the server refuses: uid 7")
}

func TestExitCodeOfAnyCommandsError(t *testing.T) {
	for want, err := range map[int]error{
		0: nil,
		1: errors.New("any"),
		2: errors.Join(errors.New("any"), exit(exitBusy, "busy")),
	} {
		if got := exitCode(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}
