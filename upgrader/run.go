package upgrader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/go-handover/handover/internal/wire"
)

// run owns the state, the attempt and the pidfile. Nothing else reads or
// writes them, so there is one order of what happens, and no lock.
type run struct {
	*Upgrader
	state   state
	pred    predecessor                               // the zero one: none, or it is gone
	attempt *attempt                                  // the zero one: none is under way
	carrier func(context.Context) (*successor, error) // starts or finds a successor
	heir    *successor                                // after confirm, until it is gone
	former  *pidfile                                  // the predecessor's, if this build keeps another
	waiters []chan<- error                            // calls of Ready that wait for commit

	orphaned <-chan struct{} // closed when our supervisor has ended; nil: there is none

	since      time.Time      // the state is what it is
	confirmers []chan<- error // wait for the end of probation
	held       []order        // wait for its beginning
	counters   wire.Counters
	last       *Verdict         // on the latest attempt
	elders     []wire.Process   // who drains, as the predecessor says
	draining   <-chan time.Time // when to tell the successor so
	logName    string

	standbys []*standby         // the next first
	turn     *os.File           // this process stands by, until its turn
	await    func(*os.File)     // waits for it
	awaited  bool               // awaitTurn waits for it
	came     bool               // it is this process's turn
	attached <-chan attachment  // of a standby that looks for who serves
	detach   context.CancelFunc // of that
	unnamed  <-chan time.Time   // when to try to get the pidfile again
	tries    int                // so far
	parting  wire.Message       // what a standby is told that cannot be taken any more
	failing  bool               // the reason to stop is that this process cannot go on
}

// loop is the one select. It ends when this process has nothing to say to
// another one any more; a process that is the server is always in it.
func (r *run) loop() {
	for !r.over() {
		select {
		case reply := <-r.readies:
			r.ready(reply)
		case req := <-r.requests:
			r.upgrade(req)
		case req := <-r.stops:
			r.stop(req)
		case text := <-r.says:
			r.say(text)
		case o := <-r.orders:
			r.order(o)
		case reply := <-r.looks:
			reply <- r.status()

		case s := <-r.joins:
			r.joined(s)
		case st := <-r.enlisted:
			r.queue(st)
		case w := <-r.words:
			r.standbySaid(w)
		case f := <-r.turns:
			r.itsTurn(f)
		case a := <-r.attached:
			r.found(a)
		case <-r.unnamed:
			r.takePIDFile()

		case l := <-r.attempt.launched:
			r.started(l)
		case m, ok := <-r.attempt.words:
			r.heard(m, ok)
		case <-r.attempt.exited:
			r.ended()
		case <-r.attempt.limit:
			r.expired()
		case <-r.attempt.canceled:
			r.callerGone()
		case err := <-r.attempt.checked:
			r.verdict(err)
		case d := <-r.attempt.deltas:
			r.deltasWritten(d)
		case taken := <-r.attempt.named:
			r.heardName(taken)

		case m, ok := <-r.pred.words():
			r.told(m, ok)
		case <-r.pred.limit:
			r.predecessorSilent()
		case <-r.pred.overdue:
			r.endPredecessor()
		case err := <-r.pred.applying:
			r.deltasApplied(err)

		case m, ok := <-r.heir.words():
			r.heirSaid(m, ok)
		case <-r.draining:
			r.reportDrain()

		case <-r.orphaned:
			r.supervisorEnded()
		case <-r.manager.watchdog:
			r.manager.ping()
		case <-r.sockets.changed:
			r.store()
			r.checkStandbys()
		}
	}
	r.farewell = r.status()
	close(r.gone)
	r.bus.close()
}

func (r *run) over() bool {
	return r.state.final() && !r.attempt.underWay() && !r.pred.alive() && r.heir == nil
}

// step makes every move, logs it and publishes it. why is nil if there is no
// reason to tell. An illegal move is a bug of run.
func (r *run) step(e event, why error) {
	from := r.state
	to, err := from.next(e)
	if err != nil {
		panic(err)
	}
	attrs := []slog.Attr{
		slog.Int("pid", os.Getpid()), slog.Int("generation", r.Generation()),
		slog.String("from", from.String()), slog.String("to", to.String()),
	}
	published := Event{Kind: EventState, From: from.String(), To: to.String()}
	if r.attempt.successor != nil {
		attrs = append(attrs, slog.Int("successor", r.attempt.pid))
	}
	if why != nil {
		attrs = append(attrs, slog.Any("err", why))
		published.Err = why.Error()
	}
	if r.attempt.underWay() {
		attrs = append(attrs, slog.Duration("elapsed", time.Since(r.attempt.begun)))
	}
	r.state, r.since = to, time.Now()
	r.committed.Store(to.committed())
	r.log.LogAttrs(context.Background(), slog.LevelInfo, "state changed", attrs...)
	r.publish(published)
}

// leave makes the last move. Who sees Done closed finds everything done that
// this process had to do for the other one, and Err set.
func (r *run) leave(e event, why error) {
	r.step(e, why)
	r.leaveTurn(e)
	r.pred.limit, r.pred.applying = nil, nil // whatever the predecessor was to say, it is no longer waited for
	if r.options.DrainTimeout > 0 {
		time.AfterFunc(r.options.DrainTimeout, r.hurryUp)
	}
	r.err = why
	if e == stopAsked && !r.failing {
		r.manager.stopping()
	} else {
		r.manager.unwatched()
	}
	r.reportDrain() // the successor acts on it, and this process may end with Done
	close(r.done)
	r.answerReady(why)
	r.answerConfirmers(why)
	r.carryOut()
}

func (r *run) answerReady(err error) {
	for _, reply := range r.waiters {
		reply <- err
	}
	r.waiters = nil
}

// warn logs what went wrong after the point where it could still be undone.
func (r *run) warn(what string, err error) {
	if err != nil {
		r.log.Warn("clean-up failed", "what", what, "pid", os.Getpid(), "generation", r.Generation(), "err", err)
	}
}

func (r *run) ready(reply chan<- error) {
	switch {
	case r.state.final():
		reply <- r.err
	case r.state == waiting:
		r.waiters = append(r.waiters, reply)
	case r.state != starting:
		reply <- nil
	case r.standsBy():
		r.waiters = append(r.waiters, reply)
		r.readyToStandBy()
	case r.pred.alive():
		r.waiters = append(r.waiters, reply)
		r.step(readyWithPredecessor, nil)
		r.sayReady()
		r.reach("ready")
	default:
		if err := r.pidfile.install(); err != nil {
			reply <- fmt.Errorf("upgrader: ready: %w", err)
			return
		}
		r.waiters = append(r.waiters, reply)
		r.step(readyAlone, nil)
		r.open()
		r.settle(0)
		r.serveAsMain()
	}
}

// serveAsMain tells the service manager that this process is the server, and
// that there is no other.
func (r *run) serveAsMain() {
	r.manager.serving(r.Generation())
	r.store()
}

// open is the moment from which this process serves.
func (r *run) open() {
	r.sockets.setGates(true)
	r.answerReady(nil)
}

// stop ends this process, and the other one as far as the request concerns it.
func (r *run) stop(s stopRequest) {
	r.failing = s.failure != ""
	switch r.state {
	case starting, waiting:
		r.stopUncommitted(s)
	case onProbation:
		r.stopOnProbation(s)
	case serving:
		r.stopCommitted()
	case upgrading:
		r.stopAttempt()
	case probation:
		r.stopDuringProbation(s)
	default:
		r.hurryUp()
	}
}

func (r *run) stopDuringProbation(s stopRequest) {
	if s.failure != "" {
		r.confirm() // whatever the successor is, this process is worse
		if r.attempt.named != nil {
			r.conclude()
		}
	}
	if r.state == probation {
		r.attempt.named = nil // whatever the manager makes of it
		if !r.attempt.dead() && r.attempt.Send(wire.Stopping{}) == nil {
			r.stopBoth()
			return
		}
		r.rollBack(successorDied, errEnded) // else nobody removes its names
	}
	if r.state == serving {
		r.stopCommitted()
	}
}

func (r *run) stopUncommitted(s stopRequest) {
	if r.pred.alive() {
		if s.service {
			_ = r.pred.Send(wire.Stopping{})
		} else {
			_ = r.pred.Send(wire.Failed{Text: s.reason()})
		}
	}
	r.giveUp(stopAsked, ErrStopped)
}

func (r *run) stopOnProbation(s stopRequest) {
	if s.failure == "" {
		r.removeNames()
		_ = r.pred.Send(wire.Stopping{}) // no reason to take the service back
	} else {
		r.sockets.setGates(false)
		_ = r.pred.Send(wire.Failed{Text: s.reason()})
	}
	r.leave(stopAsked, ErrStopped)
}

// stopAttempt ends the successor first; ended does the rest.
func (r *run) stopAttempt() {
	a := r.attempt
	a.stopAfter = true
	if a.err == nil {
		r.fail(ErrStopped)
	} else if a.successor != nil && !a.killed {
		a.awaitExit(stopTimeout)
	}
}

func (r *run) stopCommitted() {
	if !r.failing || len(r.standbys) == 0 { // else they are a standby's next
		r.removeNames()
	}
	r.leave(stopAsked, ErrStopped)
}

// removeNames removes what only the committed process may, and only at its end.
func (r *run) removeNames() {
	r.warn("pidfile not removed", errors.Join(r.pidfile.remove(), r.former.remove()))
	r.warn("unix socket not removed", r.sockets.unlinkAll())
}
