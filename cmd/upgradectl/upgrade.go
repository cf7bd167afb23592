package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/go-handover/handover/internal/client"
	"github.com/go-handover/handover/internal/wire"
	"github.com/go-handover/handover/upgrader"
)

// upgradeLimit is more than the default limits of an upgrade together.
const upgradeLimit = 90 * time.Second

func upgradeCommand(s *server) *cobra.Command {
	var noWait bool
	var limit time.Duration
	c := &cobra.Command{
		Use:   "upgrade",
		Short: "replace the process, and wait for the verdict",
		Long: `Upgrade tells the server to replace itself with the binary that now lies in the
place of its own, prints each phase as it begins, with the time since the
upgrade began, and waits for the verdict:

    prepare    nothing is started yet
    hello      the new process is started
    ready      it has said hello, and gets ready
    commit     it is ready, and takes over
    probation  it serves, and the old one can take the service back

If a standby is ready (upgradectl standby), that is the new process: nothing is
started, and there is no hello to wait for.

If the upgrade fails it says in which phase and why, with the new process's own
words and where the log is.

With -pidfile it works by SIGUSR1 and the pidfile alone. Then it cannot tell why
an upgrade failed, and sees of the phases only that the new process serves.

Exit codes:

` + exitCodes + `

If the limit of -timeout runs out, or upgradectl is interrupted, the upgrade goes
on. The limit must be more than the server's time to get ready and its probation
together.`,
		Example: `  upgradectl -socket /run/app/control upgrade
  upgradectl -socket /run/app/control upgrade -timeout 5m
  upgradectl -socket /run/app/control upgrade -no-wait
  upgradectl -pidfile /run/app/app.pid upgrade`,
		Args: noArguments,
	}
	c.Flags().BoolVar(&noWait, "no-wait", false, "return as soon as the upgrade has begun")
	limitFlag(c, &limit, upgradeLimit, "the verdict")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := s.find(c); err != nil {
			return err
		}
		ctx, cancel, err := within(c, limit)
		if err != nil {
			return err
		}
		defer cancel()
		con := consoleOf(c)
		if s.socket == "" {
			return interrupted(upgradeBySignal(ctx, s.pidfile, con, noWait), "the upgrade goes on")
		}
		u := &upgrade{client: client.Client{Path: s.socket}, verb: wire.VerbUpgrade, console: con, noWait: noWait}
		return u.run(ctx)
	}
	return c
}

// upgrade is one that is asked for through the control socket.
type upgrade struct {
	client  client.Client
	verb    string // which asks for it
	console *console
	noWait  bool

	old     int               // the pid of the process that was asked
	phase   upgrader.Phase    // the latest
	verdict *upgrader.Verdict // as an event
}

func (u *upgrade) run(ctx context.Context) error {
	return interrupted(u.ask(ctx), "the upgrade goes on; upgradectl status shows it")
}

func (u *upgrade) ask(ctx context.Context) error {
	u.console.await("the server has not answered yet")
	defer u.console.progress()()
	before, err := u.status(ctx)
	if err != nil {
		return err
	}
	u.old = self(before.Status).PID
	a, err := u.client.Do(ctx, u.verb, u.event)
	switch {
	case errors.Is(err, errBegun):
		return nil
	case errors.Is(err, client.ErrNoAnswer):
		a, err = u.lost(ctx, before)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return u.late(ctx, err)
	}
	if err != nil {
		return err
	}
	return u.conclude(a)
}

// status is what there is, from a server that does not keep anybody waiting.
func (u *upgrade) status(ctx context.Context) (client.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	return u.client.Status(ctx)
}

// errBegun ends the request of who does not wait.
var errBegun = errors.New("the upgrade has begun")

func (u *upgrade) event(e upgrader.Event) error {
	switch e.Kind {
	case upgrader.EventPhase:
		u.enter(e)
		if u.noWait && e.Phase == upgrader.PhasePrepare {
			u.console.line("begun: upgradectl status shows how it ends")
			return errBegun
		}
	case upgrader.EventProgress:
		u.console.await("%s: %s", e.Phase, e.Text)
	case upgrader.EventVerdict:
		u.verdict = e.Verdict
	default: // the phases say more
	}
	return nil
}

func (u *upgrade) enter(e upgrader.Event) {
	before := u.phase
	u.phase = e.Phase
	var what string
	switch e.Phase {
	case upgrader.PhasePrepare:
		what = fmt.Sprintf("process %d prepares", e.PID)
	case upgrader.PhaseHello:
		what = fmt.Sprintf("process %d is started", e.Successor)
	case upgrader.PhaseReady:
		what = "it has said hello, and gets ready"
		if before == upgrader.PhasePrepare { // nothing was started
			what = fmt.Sprintf("process %d has stood by", e.Successor)
		}
	case upgrader.PhaseCommit:
		what = "it is ready, and takes over"
	case upgrader.PhaseProbation:
		what = fmt.Sprintf("it serves; process %d can take the service back", e.PID)
	default:
		what = "process " + fmt.Sprint(e.PID)
	}
	u.moment(e.Elapsed, string(e.Phase), what)
	u.console.await("%s: %s", e.Phase, what)
}

// moment prints what begins or ends at a time of the upgrade.
func (u *upgrade) moment(at time.Duration, name, what string) {
	u.console.line("%s  %-9s  %s", seconds(at), printable(name), printable(what))
}

func seconds(d time.Duration) string { return fmt.Sprintf("%7.3f s", d.Seconds()) }

// lost finds the verdict that the process which was asked could not tell any
// more.
func (u *upgrade) lost(ctx context.Context, before client.Answer) (client.Answer, error) {
	if u.verdict != nil {
		s := before.Status // for the log
		s.Last = u.verdict
		return verdictAnswer(s), nil
	}
	u.console.await("process %d has ended without a verdict; the next one is asked", u.old)
	return askAgain(ctx, u.client, before.Status.Last)
}

// errJudged ends the watch of askAgain.
var errJudged = errors.New("there is a verdict")

// askAgain asks whichever process serves now for the verdict that came after
// before.
func askAgain(ctx context.Context, c client.Client, before *upgrader.Verdict) (client.Answer, error) {
	var found upgrader.Status
	look := func(s upgrader.Status, _ json.RawMessage) error {
		found = s
		switch {
		case s.Last != nil && (before == nil || !s.Last.Ended.Equal(before.Ended)):
			return errJudged
		case self(s).State == "serving":
			return exit(exitUnreachable, "no verdict: the process that was asked has ended, and process %d, which serves, knows of no upgrade", self(s).PID)
		}
		return nil
	}
	for {
		a, err := c.Watch(ctx, look)
		switch {
		case errors.Is(err, errJudged):
			return verdictAnswer(found), nil
		case err != nil && !errors.Is(err, client.ErrNoAnswer), a.Result == wire.ResultRefused:
			return a, err
		}
		pause(ctx, lookPause) // that one has been replaced too, or has ended
	}
}

var resultOfVerdict = map[upgrader.Result]string{
	upgrader.Upgraded:   wire.ResultDone,
	upgrader.Failed:     wire.ResultFailed,
	upgrader.RolledBack: wire.ResultRolledBack,
}

// verdictAnswer is the answer that the verdict in s stands for.
func verdictAnswer(s upgrader.Status) client.Answer {
	return client.Answer{Result: resultOfVerdict[s.Last.Result], Text: s.Last.Reason, Status: s}
}

// late says what there is instead of a verdict.
func (u *upgrade) late(ctx context.Context, err error) error {
	a, statusErr := u.status(context.WithoutCancel(ctx))
	if statusErr != nil {
		return err // it does not answer at all
	}
	var state []string
	for _, p := range a.Status.Processes {
		state = append(state, fmt.Sprintf("process %d: %s", p.PID, p.State))
	}
	return exit(exitFailed, "no verdict in time (-timeout); the upgrade may go on: %s", strings.Join(state, ", "))
}

// conclude tells the verdict.
func (u *upgrade) conclude(a client.Answer) error {
	last := a.Status.Last
	if a.Result == wire.ResultDone && last != nil {
		u.moment(last.Duration, "done", fmt.Sprintf("process %d has replaced process %d", last.PID, u.old))
		return nil
	}
	switch code := resultCode(a.Result); code {
	case exitDone:
		u.console.line("done")
		return nil
	case exitFailed, exitRolledBack:
		return exit(code, "%s", u.failure(a))
	case exitBusy:
		if u.verb != wire.VerbUpgrade { // perhaps there is no standby: the text says it
			return exit(code, "%s", notDone(a))
		}
		return exit(code, "busy: %s; upgradectl status -watch follows it", reason(a.Text))
	default:
		return exit(code, "%s", notDone(a))
	}
}

// notDone says why a request was not carried out.
func notDone(a client.Answer) string {
	why := reason(a.Text)
	switch a.Result {
	case wire.ResultBusy:
		return "busy: " + why
	case wire.ResultGone:
		return "the process that was asked is not the server any more: " + why
	case wire.ResultRefused:
		return "the server refuses: " + why
	}
	return a.Result + ": " + why
}

// failure is what an operator wants to know: when, why, what the new process
// itself says, and where there is more.
func (u *upgrade) failure(a client.Answer) string {
	var b strings.Builder
	last := a.Status.Last
	if last == nil {
		last = &upgrader.Verdict{Phase: u.phase}
	}
	b.WriteString(a.Result)
	if last.Phase != "" {
		fmt.Fprintf(&b, " in phase %s", last.Phase)
	}
	if last.Duration > 0 {
		fmt.Fprintf(&b, " after %.3f s", last.Duration.Seconds())
	}
	why := reason(a.Text)
	if last.Text != "" {
		why = strings.TrimSuffix(why, "; it said: "+last.Text)
	}
	fmt.Fprintf(&b, ": %s\n", why)
	if last.Text != "" {
		fmt.Fprintf(&b, "  it said    %s\n", indented(last.Text))
	}
	if where := logHint(a.Status.Log, last.PID); where != "" {
		fmt.Fprintf(&b, "  log        %s\n", where)
	}
	if p := self(a.Status); p.PID != 0 {
		fmt.Fprintf(&b, "  serving    process %d\n", p.PID)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// reason is an error's text as one reads it here.
func reason(text string) string { return strings.TrimPrefix(text, "upgrader: ") }

// indented has the further lines of text under the first one.
func indented(text string) string {
	return strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n             ")
}

// logHint says where the standard error of a process goes.
func logHint(name string, pid int) string {
	if strings.HasPrefix(name, "socket:") && pid != 0 {
		return fmt.Sprintf("%s; if that is the journal: journalctl _PID=%d", name, pid)
	}
	return name
}

// self is the process that has answered.
func self(s upgrader.Status) upgrader.Process {
	for _, p := range s.Processes {
		if p.Self {
			return p
		}
	}
	return upgrader.Process{}
}
