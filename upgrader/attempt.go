package upgrader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/go-handover/handover/internal/wire"
)

// attempt is one upgrade under way, seen from the predecessor. The zero attempt
// is none: its channels are nil, so that a select over them never fires.
type attempt struct {
	*successor // nil until it was started
	request

	phase    Phase
	begun    time.Time
	since    time.Time          // it is in the phase
	work     context.Context    // what is done for it beside the loop
	cancel   context.CancelFunc // of that
	launched <-chan launched
	words    <-chan wire.Message // the successor's
	canceled <-chan struct{}     // the caller's ctx, until commit
	checked  <-chan error        // Options.Check's answer
	deltas   <-chan deltas       // what has changed in the states
	told     bool                // that was asked for
	timeIsUp bool                // probation is over but for that answer
	named    <-chan bool         // what the manager did with the successor's name; nil: it was not told
	limit    <-chan time.Time    // of the current phase
	looked   bool                // that limit has run out once
	latest   time.Time           // progress extends the limit up to this
	text     string              // the successor's last words

	restarts  int             // successors before this one: see startAgain
	err       error           // why it failed; then it only ends
	exited    <-chan struct{} // the successor's end, once it failed
	killed    bool
	stopAfter bool // Stop was asked: there is no way back to serving
}

type launched struct {
	successor *successor
	err       error
}

func (a *attempt) underWay() bool { return !a.begun.IsZero() }

// extend lets the phase last d from now on.
func (a *attempt) extend(d time.Duration) { a.limit, a.looked = time.After(d), false }

// enter begins a phase of the attempt, which may last d.
func (r *run) enter(p Phase, d time.Duration) {
	r.attempt.phase, r.attempt.since = p, time.Now()
	r.attempt.extend(d)
	r.publish(Event{Kind: EventPhase, Phase: p})
}

// expire reports that the current limit is over for good. It looks twice: a
// process that was stopped, or slept with its machine, finds its timers run out
// and the answer that it waited for unread at the same instant.
func (a *attempt) expire() bool {
	if a.looked {
		return true
	}
	a.looked, a.limit = true, time.After(secondLook)
	return false
}

// awaitExit bounds the wait for the end of a successor that failed.
func (a *attempt) awaitExit(d time.Duration) {
	a.exited, a.limit, a.looked = a.successor.exited, time.After(d), true
}

// answer gives the caller of Upgrade the verdict, once.
func (a *attempt) answer(err error) {
	if a.reply != nil {
		a.reply <- err
		a.reply = nil
	}
}

// upgrade begins an attempt, or refuses to.
func (r *run) upgrade(req request) {
	if err := r.refusal(req); err != nil {
		level := slog.LevelDebug
		if errors.Is(err, ErrInit) {
			level = slog.LevelWarn // no upgrade will ever succeed
		}
		r.log.Log(context.Background(), level, "upgrade refused", "pid", os.Getpid(), "err", err)
		req.reply <- err
		return
	}
	if st := r.firstStandby(); st != nil && req.carrier == nil {
		r.promote(st, req)
		return
	}
	r.step(upgradeAsked, nil)
	r.manager.upgrading(r.Generation() + 1)
	r.begin(&attempt{request: req, begun: time.Now()})
}

// refusal is why there is no attempt, nil if there is one.
func (r *run) refusal(req request) error {
	err := r.state.refusal()
	switch {
	case r.state.final():
		return r.err
	case err != nil:
		return err
	case req.stranger != nil:
		return nil
	case r.firstStandby() == nil && req.promote:
		return ErrNoStandby
	case r.firstStandby() == nil && r.isInit:
		return ErrInit
	}
	return context.Cause(req.ctx)
}

// begin starts the successor of an attempt, beside the loop.
func (r *run) begin(a *attempt) {
	ctx, cancel := context.WithCancel(a.ctx)
	result := make(chan launched, 1)
	a.phase, a.since = PhasePrepare, time.Now()
	a.work, a.cancel, a.canceled, a.launched = ctx, cancel, a.ctx.Done(), result
	r.attempt = a
	r.publish(Event{Kind: EventPhase, Phase: PhasePrepare})
	carrier := r.carrier
	if a.carrier != nil {
		carrier = a.carrier
	}
	go func() {
		s, err := carrier(ctx)
		result <- launched{s, err}
	}()
}

// started is the end of the first phases, which ran beside the loop.
func (r *run) started(l launched) {
	a := r.attempt
	a.launched = nil
	if l.err != nil {
		if a.err == nil {
			a.err = l.err
		}
		r.putBack()
		r.ended()
		return
	}
	a.successor, a.words = l.successor, l.successor.inbox
	if l.successor.stranger == nil {
		r.enter(PhaseHello, helloTimeout)
	} else {
		r.enterReady() // it has said hello, and has everything
	}
	switch {
	case a.err != nil: // given up meanwhile
		r.endSuccessor()
	case a.waits:
		r.successorReady(wire.Ready{Deltas: a.wants})
	}
}

// enterReady begins the phase in which the successor gets ready.
func (r *run) enterReady() {
	r.reach("hello")
	r.enter(PhaseReady, r.options.ReadyTimeout)
	r.attempt.latest = time.Now().Add(max(maxReadyWait, r.options.ReadyTimeout))
}

// heard is what the successor says, or its end.
func (r *run) heard(m wire.Message, ok bool) {
	switch m := m.(type) {
	case nil:
		if !ok {
			r.successorGone()
		}
	case wire.Progress:
		r.progress(m.Text)
	case wire.Failed:
		r.successorFailed(m.Text)
	case wire.Hello:
		r.hello(m)
	case wire.Ready:
		r.successorReady(m)
	case wire.Serving:
		r.serving()
	case wire.Confirm:
		r.confirm() // it waited too long for this word, and went on
	case wire.Stopping:
		if r.attempt.err == nil { // else it acknowledges the abort
			r.stopBoth()
		}
	default:
		r.giveBack(fmt.Errorf("it sent a %T", m))
	}
}

func (r *run) hello(m wire.Hello) {
	a := r.attempt
	switch {
	case !r.expects(PhaseHello, m):
	case m.Version != wire.Version:
		r.fail(fmt.Errorf("it speaks version %d of the handover protocol, this build version %d", m.Version, wire.Version))
	case m.PID != a.pid:
		r.fail(fmt.Errorf("hello came from process %d: a wrapper must exec the server, not start it", m.PID))
	default:
		a.build = m.Build
		r.enterReady()
		r.tell(r.manifest(a.given, r.counters))
	}
}

// tell sends what the attempt cannot go on without. That the successor is gone
// is no answer: why it went is in the channel, and may be that it was stopped.
func (r *run) tell(m wire.Message) (sent bool) {
	err := r.attempt.Send(m)
	if err != nil && !isGone(err) {
		r.giveBack(err)
	}
	return err == nil
}

// expects reports that a message fits the phase; if not, the attempt fails.
func (r *run) expects(p Phase, m wire.Message) bool {
	if r.attempt.err != nil {
		return false // it only ends
	}
	if r.attempt.phase != p {
		r.giveBack(fmt.Errorf("it sent a %T in the phase %s", m, r.attempt.phase))
		return false
	}
	return true
}

func (r *run) progress(text string) {
	a := r.attempt
	a.text = text
	r.publish(Event{Kind: EventProgress, Phase: a.phase, Text: text})
	if a.phase == PhaseReady && a.err == nil && time.Now().Before(a.latest) {
		d := min(r.options.ReadyTimeout, time.Until(a.latest))
		a.extend(d)
		r.manager.working(text, d)
	}
}

// commit makes the successor the server. What can fail comes first, and this
// process accepts until the successor has said that it does.
func (r *run) commit() {
	a := r.attempt
	if !r.expects(PhaseReady, wire.Ready{}) {
		return
	}
	r.reach("ready")
	if a.dead() {
		return // exit beats ready: its end is in the channel
	}
	a.canceled = nil
	r.enter(PhaseCommit, servingTimeout)
	if err := r.pidfile.commit(); err != nil {
		r.fail(err)
		return
	}
	r.reach("renamed")
	r.committed.Store(false) // step says otherwise again if this fails
	r.tell(wire.Commit{})
	r.reach("committed")
}

// serving: the successor accepts, so this process stops to.
func (r *run) serving() {
	a := r.attempt
	if !r.expects(PhaseCommit, wire.Serving{}) {
		return
	}
	r.reach("serving")
	r.sockets.setGates(false)
	r.step(successorServing, nil)
	r.enter(PhaseProbation, max(r.options.Probation, 0))
	a.looked = r.options.Probation < 0 // there is nothing to look for
	a.canceled = a.ctx.Done()
	if r.options.Check != nil {
		r.check()
	}
	r.reach("probation")
	r.carryOut()
}

// check asks the program whether the successor is any good.
func (r *run) check() {
	a := r.attempt
	result := make(chan error, 1)
	a.checked = result
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), r.options.Probation)
	go func() {
		defer cancel()
		result <- r.options.Check(ctx)
	}()
}

func (r *run) verdict(err error) {
	r.attempt.checked = nil
	switch {
	case err != nil:
		r.rollBack(rollbackAsked, fmt.Errorf("check: %w", err))
	case r.attempt.timeIsUp:
		r.confirm()
	}
}

// confirm ends probation. The manager hears first who the server is, and this
// process waits until it has: a manager that finds the name of a dead process
// stays with this one, which then takes the service back.
func (r *run) confirm() {
	a := r.attempt
	if a.named != nil || !r.expects(PhaseProbation, wire.Confirm{}) {
		return
	}
	r.reach("confirm")
	if a.dead() {
		return // its end is in the channel
	}
	if !r.names(a.successor) {
		r.conclude()
		return
	}
	if a.successor.stranger != nil { // it has no way to say so
		r.manager.tell("READY=1", status("serving, generation %d", r.Generation()+1))
	}
	a.leave()
	a.named = r.manager.name(a.successor)
	a.limit = nil
	r.reach("named")
}

// names reports that the service manager hears of a new main process: one that
// has a manager of its own is the main process there.
func (r *run) names(s *successor) bool { return r.manager.send != nil && !s.managed() }

// heardName is what the manager made of it.
func (r *run) heardName(taken bool) {
	a := r.attempt
	a.named = nil
	if taken {
		r.conclude()
		return
	}
	r.log.Warn("service manager stays with this process", "pid", os.Getpid(), "generation", r.Generation(), "successor", a.pid,
		"reason", "the successor was dead when it was named")
	a.take()
	r.manager.regain()
	r.rollBack(successorDied, cmp.Or(a.peer.err, errEnded))
}

// conclude leaves the service to the successor. One that cannot even be told
// has ended, and is rolled back when the channel says so, unless the manager
// watches it already: then another one is started.
func (r *run) conclude() {
	a := r.attempt
	elapsed := time.Since(a.begun)
	if !r.names(a.successor) {
		if !r.tell(wire.Confirm{Elapsed: elapsed}) {
			return
		}
	} else {
		_ = a.Send(wire.Confirm{Elapsed: elapsed}) // as said
	}
	r.judge(Verdict{Result: Upgraded, PID: a.pid, Duration: elapsed})
	r.successor.Store(a.peer)
	r.answerSettled()
	if a.managed() {
		r.manager.left(r.Generation()+1, a.pid)
	}
	r.handOn(timeUp, ErrUpgraded)
	if a.swap {
		r.warn("no standby started", r.standByAgain())
	}
	r.attempt = &attempt{}
}

// answerSettled gives the verdict to those who wait for it once the successor has
// heard it: what they ask next, that process answers.
func (r *run) answerSettled() {
	settled := make(chan struct{})
	r.attempt.settled = sync.OnceFunc(func() { close(settled) })
	a, confirmers := r.attempt, r.confirmers
	r.confirmers = nil
	go func() {
		select {
		case <-settled:
		case <-time.After(settleTimeout): // it hangs, but the service is its own
		}
		a.answer(nil)
		for _, reply := range confirmers {
			reply <- nil
		}
	}()
}

var errEnded = errors.New("it ended")

// handOn leaves the service, and the names of it, to the successor.
func (r *run) handOn(e event, why error) {
	r.attempt.cancel()
	r.heir = r.attempt.successor
	r.keepSockets()
	r.warn("old pidfile not closed", r.pidfile.confirm())
	r.leave(e, why)
}

// keepSockets holds the sockets to the end of this process if the service
// manager would not see the successor's death before that: nobody is refused
// until it starts another one.
func (r *run) keepSockets() {
	if r.manager.send == nil || !r.heir.child {
		return
	}
	_, files, err := r.sockets.duplicate()
	r.warn("sockets not kept", err)
	r.kept = files
}

// heirSaid is what the confirmed successor says, or its end.
func (r *run) heirSaid(m wire.Message, ok bool) {
	if !ok {
		r.heir.hasSettled()
		_ = r.heir.Close() // its end is all that was left of it
		r.heir = nil
		r.successor.Store(nil)
		return
	}
	switch m := m.(type) {
	case wire.Serving:
		r.heir.hasSettled()
	case wire.Hurry:
		if r.Generation() <= m.Generation {
			r.hurryUp()
		}
		r.hurryElders(m.Generation)
	}
}

// ---- an attempt that fails ----

// giveBack ends an attempt in whatever phase it is.
func (r *run) giveBack(why error) {
	if r.state == probation {
		r.rollBack(rollbackAsked, why)
		return
	}
	r.fail(why)
}

// fail gives the attempt up before the successor served: this process has
// never stopped accepting. A successor that was started ends first, so that
// the next attempt finds nothing of it.
func (r *run) fail(why error) {
	a := r.attempt
	if a.err != nil {
		return
	}
	a.err, a.canceled = why, nil
	if a.successor == nil {
		a.cancel() // started has the rest
		return
	}
	r.endSuccessor()
}

func (r *run) endSuccessor() {
	a := r.attempt
	r.putBack()
	_ = a.Send(wire.Abort{Reason: a.err.Error()}) // if it is gone, all the better
	if errors.Is(a.err, ErrTimeout) {
		_ = a.signal(askGoroutines)
	}
	if a.stopAfter {
		a.awaitExit(stopTimeout)
	} else {
		a.awaitExit(exitTimeout)
	}
}

// putBack undoes what the attempt did to the pidfile.
func (r *run) putBack() { r.warn("pidfile not put back", r.pidfile.rollback()) }

// rollBack takes the service back: first accept, then the pidfile, then the
// report.
func (r *run) rollBack(e event, why error) {
	a := r.attempt
	if a.named != nil {
		return // the manager watches the successor, or heardName comes back here
	}
	r.sockets.setGates(true)
	r.putBack()
	a.err, a.checked, a.canceled = why, nil, nil
	r.step(e, why)
	r.answerConfirmers(why)
	r.judge(failedVerdict(RolledBack, a, why))
	r.manager.failed(r.failure(a))
	_ = a.Send(wire.Abort{Reason: why.Error()}) // if it is gone, all the better
	r.forget()
	if e == rollbackAsked {
		// It is alive and has clients: it drains like any other generation.
		go a.outlive(r.options.DrainTimeout)
		r.report(a)
		return
	}
	_ = a.signal(os.Kill) // its channel is closed; if it still is there, it must not be
	go func() {
		a.reaped()
		r.report(a)
	}()
}

// report answers for an attempt that was rolled back.
func (u *Upgrader) report(a *attempt) {
	err := u.failure(a)
	u.log.Warn("rolled back", "pid", os.Getpid(), "generation", u.Generation(), "successor", a.pid, "err", err)
	a.answer(err)
}

// successorFailed: it says itself that it cannot be the server.
func (r *run) successorFailed(text string) {
	r.attempt.text = text
	why := errors.New("it gave up")
	if r.state == probation {
		r.rollBack(rollbackAsked, why)
		return
	}
	r.fail(why)
}

func (r *run) successorGone() {
	a := r.attempt
	a.words = nil
	switch {
	case a.err != nil: // it only ends
	case r.state == probation:
		r.rollBack(successorDied, cmp.Or(a.peer.err, errEnded))
	default:
		r.fail(cmp.Or(a.peer.err, errEnded))
	}
}

// stopBoth: somebody stops the service, here or by way of the successor.
func (r *run) stopBoth() {
	if r.state == upgrading {
		r.attempt.stopAfter = true
		r.fail(ErrStopped)
		return
	}
	if r.state == probation {
		a := r.attempt
		r.handOn(stopAsked, ErrStopped)
		a.answer(ErrStopped)
		r.attempt = &attempt{}
	}
}

// callerGone: the ctx of Upgrade is done.
func (r *run) callerGone() {
	a := r.attempt
	if r.state == probation {
		a.canceled = nil
		a.answer(context.Cause(a.ctx)) // the attempt goes on
		return
	}
	r.fail(context.Cause(a.ctx))
}

// expired is the end of the current phase's limit.
func (r *run) expired() {
	a := r.attempt
	switch {
	case !a.expire():
	case a.err != nil && !a.killed:
		a.killed = true
		_ = a.signal(os.Kill) // it may have ended at this instant
		a.awaitExit(killTimeout)
	case a.err != nil:
		r.ended() // the kernel keeps it: there is nothing more to do
	case r.state != probation:
		r.fail(fmt.Errorf("%w: it took longer than it may", ErrTimeout))
	case a.checked == nil:
		r.confirm()
	case !a.timeIsUp:
		// A check that watches for all of probation answers when its ctx ends,
		// which is now.
		a.timeIsUp, a.limit = true, time.After(checkTimeout)
	default:
		r.rollBack(rollbackAsked, fmt.Errorf("check: no answer: %w", ErrTimeout))
	}
}

// maxRestarts is how many successors of one attempt the trigger itself may end.
const maxRestarts = 5

// startAgain begins once more if the successor has ended before it said hello,
// by a signal that triggers upgrades: sent to all processes of the service, as
// systemctl kill does by default, it reaches one that has been executed and does
// not handle signals yet. systemd looks for more as long as it finds any. How a
// sibling has ended is not known.
func (r *run) startAgain() bool {
	a := r.attempt
	if a.stopAfter || a.restarts == maxRestarts || a.phase != PhaseHello || !errors.Is(a.err, errEnded) || !a.hit(r.triggers.Load()) {
		return false
	}
	r.log.Info("successor started again", "pid", os.Getpid(), "generation", r.Generation(), "successor", a.pid,
		"reason", "it was ended before it said hello, perhaps by the signal for this process")
	_ = a.Close() // it is gone
	a.ignore()
	a.cancel()
	r.begin(&attempt{request: a.request, begun: a.begun, restarts: a.restarts + 1})
	return true
}

// ended: nothing of the failed attempt is left.
func (r *run) ended() {
	a := r.attempt
	if r.state == upgrading && r.startAgain() {
		return
	}
	if r.state == upgrading && !a.stopAfter {
		err := r.failure(a)
		r.step(successorFailed, err)
		r.judge(failedVerdict(Failed, a, err))
		r.manager.failed(err)
	}
	if a.successor != nil {
		_ = a.Close()
		a.ignore()
	}
	if a.stopAfter {
		a.err = ErrStopped
		r.stopCommitted()
	}
	r.forget()
	a.answer(r.failure(a))
}

// forget ends the attempt for run: the next one may begin, and the pidfile's
// time says so.
func (r *run) forget() {
	r.attempt.cancel()
	r.attempt = &attempt{}
	r.warn("pidfile's time not set", r.pidfile.stamp())
	r.carryOut()
}

// failure is what Upgrade returns for a failed attempt.
func (u *Upgrader) failure(a *attempt) error {
	if a.err == ErrStopped { //nolint:errorlint // not one that wraps it
		return a.err
	}
	if prepared := (*SuccessorError)(nil); errors.As(a.err, &prepared) {
		return prepared
	}
	e := u.attemptError(a.phase, a.err)
	if a.request.stranger != nil {
		e.Path = takenOver
	}
	e.Text = a.text
	if a.successor != nil {
		e.PID = a.pid
		if a.dead() {
			e.State = a.state
		}
	}
	return e
}
