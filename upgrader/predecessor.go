package upgrader

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/go-handover/handover/internal/wire"
)

// predecessor is what a successor knows of the process that it is to replace.
// The zero predecessor is none: its channels are nil, so that a select over
// them never fires.
type predecessor struct {
	*peer
	manifest wire.Manifest
	end      func() error     // ends it; nil: this process cannot
	limit    <-chan time.Time // of the current wait
	looked   bool             // that limit has run out once
	silent   bool             // it was not waited for any longer
	overdue  <-chan time.Time // when it should have drained
	applying <-chan error     // what has changed in the states; meanwhile no word of it is heard
}

func (p *predecessor) alive() bool { return p.peer != nil }

func (p *predecessor) words() <-chan wire.Message {
	if p.peer == nil || p.applying != nil {
		return nil
	}
	return p.inbox
}

// kill ends a predecessor that drains for too long.
func (p *predecessor) kill() error {
	if p.end == nil {
		return errors.New("this system does not let this process end it")
	}
	return p.end()
}

// wait starts the wait for the predecessor's next word.
func (p *predecessor) wait(d time.Duration) { p.limit, p.looked = time.After(d), false }

// settle does what had to wait until there was no way back. elapsed is how long
// the upgrade took; 0: that is not known.
func (r *run) settle(elapsed time.Duration) {
	r.pred.limit = nil
	r.warn("pidfile not written", r.pidfile.install())
	r.warn("former pidfile not removed", errors.Join(r.former.install(), r.former.remove()))
	r.former = nil
	r.warn("unclaimed sockets not closed", r.sockets.closeUnclaimed())
	if r.Generation() > 1 {
		r.judge(Verdict{Result: Upgraded, PID: os.Getpid(), Duration: elapsed})
	}
	if !r.pred.alive() {
		return
	}
	if d := r.pred.manifest.DrainTimeout; d > 0 {
		r.pred.overdue = time.After(d + hurryTimeout)
	}
	if r.options.MaxDraining > 0 {
		r.hurryElders(r.Generation() - 1 - r.options.MaxDraining)
	}
}

// hurryElders tells every generation up to this one to finish its drain. The
// word goes from successor to predecessor down the line.
func (r *run) hurryElders(generation int) {
	if generation < 1 || !r.pred.alive() {
		return
	}
	_ = r.pred.Send(wire.Hurry{Generation: generation}) // if it is gone, it needs no hurry
	if r.Generation()-1 <= generation {
		r.pred.overdue = time.After(hurryTimeout)
	}
}

func (r *run) say(text string) {
	switch {
	case r.state.committed() || r.state.final():
	case r.pred.alive():
		_ = r.pred.Send(wire.Progress{Text: text}) // if it is gone, nobody waits
	default:
		r.manager.working(text, r.options.ReadyTimeout)
	}
}

// told is what the predecessor says, or its end.
func (r *run) told(m wire.Message, ok bool) {
	if !ok {
		r.predecessorEnded()
		return
	}
	switch m := m.(type) {
	case wire.Commit:
		if r.state == waiting && !r.standsBy() { // it would have been given the locks before
			r.commitSelf()
		}
	case wire.Confirm:
		if r.state == onProbation {
			r.settle(m.Elapsed)
			r.step(confirmed, nil)
			if r.manager.main { // it has one of its own
				r.serveAsMain()
			}
			r.answerConfirmers(nil)
		}
		_ = r.pred.Send(wire.Serving{}) // if it is gone, nobody waits for it
	case wire.Draining:
		r.elders = m.Processes
		if r.state.committed() && !r.manager.main {
			r.manager.take(r.Generation())
			r.store()
		}
	case keys:
		r.promotion(m)
	case wire.Moved:
		r.moved()
	case received:
		r.applyDeltas(m)
	case wire.Abort:
		r.abort(m.Reason)
	case wire.Stopping:
		switch {
		case !r.state.final():
			r.stop(stopRequest{})
		case r.state == stopped: // on probation, and it had not heard of that
			r.removeNames() // it has left them to this process
		}
	}
}

// commitSelf answers the predecessor's commit: first accept, then say so.
func (r *run) commitSelf() {
	r.reach("commit")
	if !r.pidfileShared { // the predecessor wrote its own only
		if err := r.pidfile.install(); err != nil {
			r.stop(stopRequest{failure: err.Error()})
			return
		}
	}
	r.step(committedByPredecessor, nil)
	r.pred.wait(r.pred.manifest.Probation + confirmTimeout)
	r.open()
	r.reach("open")
	_ = r.pred.Send(wire.Serving{}) // if it is gone, its channel says so next
	r.reach("serving")
}

// predecessorEnded is how the predecessor dies, and how it exits after its
// drain. Before commit this process commits itself as soon as it is ready.
func (r *run) predecessorEnded() {
	broken := r.pred.err
	_ = r.pred.Close() // nothing more will be said
	r.pred = predecessor{manifest: r.pred.manifest}
	r.elders = nil
	if r.standsBy() && broken == nil && !r.state.final() {
		r.attachAgain() // it may have been replaced
		return
	}
	r.beAlone()
	switch {
	case broken != nil && !r.state.final() && !r.state.committed():
		r.abort(broken.Error())
	case r.state == waiting || r.state == onProbation:
		r.succeed()
	case r.state.committed() && !r.manager.main:
		r.serveAsMain() // it was confirmed, and had no time to tell
	}
}

// succeed makes this process, which was ready, the server in place of one that
// has died.
func (r *run) succeed() {
	r.sockets.setGates(true) // nobody accepts: that comes first
	r.settle(0)
	r.step(predecessorGone, nil)
	r.serveAsMain()
	r.answerReady(nil)
	r.answerConfirmers(nil)
}

// predecessorSilent: a predecessor that was ready to be replaced and says
// nothing is stopped or hangs. Before commit it still is the server, so this
// process goes back; after it this process is, and goes on.
func (r *run) predecessorSilent() {
	if !r.pred.looked {
		r.pred.looked, r.pred.limit = true, time.After(secondLook)
		return
	}
	if r.state == waiting {
		r.log.Warn("predecessor silent", "pid", os.Getpid(), "predecessor", r.pred.pid, "err", ErrTimeout)
		r.giveUp(predecessorSilent, ErrAborted)
		return
	}
	_ = r.pred.Send(wire.Confirm{}) // it finds this when it wakes up
	r.pred.silent = true
	r.settle(0)
	r.step(predecessorSilent, nil)
	r.serveAsMain()
	r.answerConfirmers(nil)
}

func (r *run) abort(reason string) {
	switch {
	case r.state == onProbation || r.state == serving && r.pred.silent:
		// It may have been silent for long, and taken the service back as the first
		// thing that it did: then it must not find two who serve.
		r.pred.overdue = nil
		r.sockets.setGates(false)
		_ = r.pred.Send(wire.Stopping{}) // if it is gone, nobody waits for it
		// The predecessor has put its own back, so this removes only a pidfile that
		// it does not keep.
		r.warn("pidfile not removed", r.pidfile.remove())
		r.leave(rolledBack, fmt.Errorf("%w: %s", ErrRolledBack, reason))
	case r.state == starting || r.state == waiting:
		r.giveUp(aborted, fmt.Errorf("%w: %s", ErrAborted, reason))
	case !r.state.final():
		r.log.Warn("abort ignored", "pid", os.Getpid(), "state", r.state, "reason", reason)
	default:
		// It is the answer to Fail on probation, and the predecessor waits to hear
		// that this process drains and does not hang.
		_ = r.pred.Send(wire.Stopping{})
	}
}

// giveUp leaves before this process was committed: the predecessor serves on.
func (r *run) giveUp(e event, why error) {
	r.warn("pidfile not closed", errors.Join(r.pidfile.close(), r.former.close()))
	if r.pred.alive() {
		_ = r.pred.Close() // what was said before is still read
	}
	r.lookNoMore()
	r.waitNoMore()
	if !r.pred.alive() { // a standby looks for it
		r.beAlone()
	}
	r.leave(e, why)
}

// endPredecessor: it was told to hurry, or had all the time it asked for.
func (r *run) endPredecessor() {
	r.counters.Killed++
	attrs := []any{"pid", os.Getpid(), "predecessor", r.pred.pid}
	if len(r.elders) > 0 && r.elders[0].Connections != nil {
		attrs = append(attrs, "connections", *r.elders[0].Connections) // as it said last
	}
	r.log.Warn("predecessor did not finish its drain: killed", attrs...)
	r.pred.overdue = nil
	r.warn("kill", r.pred.kill())
}
