package upgrader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// deltaTimeout bounds what comes between ready and commit if a state changes
// until then: the callbacks of the old process, and as long again those of the
// new one.
const deltaTimeout = 30 * time.Second

// deltaWriter is a state that changes while the successor gets ready.
type deltaWriter interface{ WriteDelta(w io.Writer) error }

// OnStateDelta takes what changes in a state until this process is committed:
// for a large one, most of which has to be there before Ready while the
// predecessor serves on. Call it before Ready; nil: no longer.
//
// When this process is ready, the predecessor calls the WriteDelta of its data,
// if it has one, and apply is called here with what that has written, in a
// goroutine of its own, before the gates open. It is not called if there is no
// difference. delta is mapped memory, gone when apply returns. The predecessor
// serves on meanwhile, 30 s at most in either process. An error or a panic of
// either callback fails the upgrade.
//
// What changes after WriteDelta has returned is not handed on. A predecessor
// that must not lose anything holds back what would change its state from then
// on, until Done is closed or the upgrade has failed.
func (u *Upgrader) OnStateDelta(name string, apply func(delta []byte) error) error {
	if err := errors.Join(u.Err(), checkStateName(name)); err != nil {
		return fmt.Errorf("upgrader: on delta of state %q: %w", name, err)
	}
	u.states.mu.Lock()
	defer u.states.mu.Unlock()
	if apply == nil {
		delete(u.states.apply, name)
	} else {
		u.states.apply[name] = apply
	}
	return nil
}

// ---- in the old process ----

// deltas is what has changed in the states, in one file in memory.
type deltas struct {
	file   *os.File // nil: nothing has
	states []wire.State
	err    error
}

// successorReady commits the successor, but first gives it what has changed if
// it asks for that. Then it says ready again.
func (r *run) successorReady(m wire.Ready) {
	a := r.attempt
	switch {
	case a.deltas != nil:
		r.giveBack(errors.New("it said ready again before it had what has changed"))
	case !m.Deltas:
		r.commit()
	case !r.expects(PhaseReady, m):
	case a.told:
		r.giveBack(errors.New("it asked again what has changed"))
	default:
		a.told = true
		r.reach("deltas")
		a.extend(deltaTimeout)
		a.deltas = r.writeDeltas(a.work)
	}
}

// writeDeltas calls the callbacks beside the loop. If the attempt ends before
// they do, nobody gets what they have written.
func (r *run) writeDeltas(over context.Context) <-chan deltas {
	result := make(chan deltas)
	go func() {
		ctx, cancel := context.WithTimeoutCause(over, deltaTimeout, fmt.Errorf("not written in %v: %w", deltaTimeout, ErrTimeout))
		defer cancel()
		d := r.changed(ctx)
		select {
		case result <- d:
		case <-over.Done():
			d.close()
		}
	}()
	return result
}

// changed asks each state of the attempt what has changed.
func (u *Upgrader) changed(ctx context.Context) (d deltas) {
	u.states.mu.Lock()
	writers := u.states.deltas
	u.states.mu.Unlock()
	if len(writers) == 0 {
		return deltas{}
	}
	f, err := fd.NewMemory("delta")
	if err != nil {
		return deltas{err: err}
	}
	d = deltas{file: f}
	for _, name := range slices.Sorted(maps.Keys(writers)) {
		s, err := u.written(ctx, f, -1, writers[name].WriteDelta)
		if err != nil {
			d.close()
			return deltas{err: fmt.Errorf("state %q: its difference: %w", name, err)}
		}
		if s.Size > 0 {
			s.Name = name
			d.states = append(d.states, s)
		}
	}
	err = fd.Seal(f)
	if err != nil || len(d.states) == 0 {
		d.close()
		return deltas{err: err}
	}
	return d
}

func (d deltas) close() {
	if d.file != nil {
		_ = d.file.Close() // the successor has its own, or needs none
	}
}

// deltasWritten goes on with what successorReady has begun.
func (r *run) deltasWritten(d deltas) {
	defer d.close()
	a := r.attempt
	a.deltas = nil
	switch {
	case a.err != nil: // it only ends
	case d.err != nil:
		r.fail(d.err)
	case d.file == nil:
		r.commit()
	default:
		a.extend(deltaTimeout)
		if err := d.send(a.peer); err != nil && !isGone(err) {
			r.fail(err)
		}
	}
}

func (d deltas) send(p *peer) error {
	rc, err := d.file.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = rc.Control(func(n uintptr) { sendErr = p.Send(wire.Delta{States: d.states}, int(n)) })
	return errors.Join(err, sendErr)
}

// ---- in the new process ----

// received is a Delta with its file, on the way from the reader of the channel
// to run.
type received struct {
	wire.Delta
	files []*os.File // one, or none: this process was at its limit
}

// sayReady tells the predecessor, and asks for what has changed if there is
// something that takes it.
func (r *run) sayReady() {
	deltas := slices.ContainsFunc(r.pred.manifest.Sockets, func(s wire.Socket) bool {
		return s.State != nil && s.State.Delta && r.states.applier(s.State.Name) != nil
	})
	wait := commitTimeout
	if deltas {
		wait += deltaTimeout
	}
	r.pred.wait(wait)
	// If this fails the predecessor is gone, and its channel says so next.
	_ = r.pred.Send(wire.Ready{Deltas: deltas})
}

func (ss *states) applier(name string) func([]byte) error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.apply[name]
}

// applyDeltas begins to apply what has changed, beside the loop. Until that is
// done nothing else is heard of the predecessor, not even its end: the gates
// must not open before.
func (r *run) applyDeltas(m received) {
	if r.state != waiting {
		closeAll(m.files)
		return
	}
	result := make(chan error, 1)
	r.pred.applying, r.pred.limit = result, nil
	go func() {
		defer closeAll(m.files)
		result <- r.applied(m)
	}()
}

// deltasApplied: this process is what it said that it is, ready.
func (r *run) deltasApplied(err error) {
	r.pred.applying = nil
	if err != nil {
		_ = r.pred.Send(wire.Failed{Text: err.Error()}) // if it is gone, nobody asks
		r.giveUp(aborted, fmt.Errorf("%w: %w", ErrAborted, err))
		return
	}
	r.pred.wait(commitTimeout)
	_ = r.pred.Send(wire.Ready{}) // if it is gone, its channel says so next
}

// applied applies what has changed. What this build does not know it ignores.
func (u *Upgrader) applied(m received) error {
	if len(m.files) == 0 {
		return fmt.Errorf("what has changed in the states was lost: no descriptor was free: RLIMIT_NOFILE is %d: raise it", fd.Limit())
	}
	data, err := openDelta(m)
	if err != nil {
		return fmt.Errorf("what has changed in the states: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), deltaTimeout,
		fmt.Errorf("not applied in %v: %w", deltaTimeout, ErrTimeout))
	defer cancel()
	rest := data
	for _, s := range m.States {
		delta := rest[:s.Size:s.Size]
		rest = rest[s.Size:]
		if err = u.applyTo(ctx, s, delta); err != nil {
			err = fmt.Errorf("state %q: its difference: %w", s.Name, err)
			break
		}
	}
	if ctx.Err() != nil {
		return err // a callback was left behind, and may still read
	}
	return errors.Join(err, fd.Unmap(data))
}

func (u *Upgrader) applyTo(ctx context.Context, s wire.State, delta []byte) error {
	apply := u.states.applier(s.Name)
	if apply == nil {
		return nil
	}
	return u.call(ctx, func() error {
		if err := checkSum(delta, s.Sum); err != nil {
			return err
		}
		return apply(delta)
	})
}

// openDelta maps what came, if it is as long as its parts.
func openDelta(m received) ([]byte, error) {
	size, err := fd.Sealed(m.files[0])
	if err != nil {
		return nil, err
	}
	left := size
	for _, s := range m.States {
		if s.Size < 0 || s.Size > left {
			return nil, fmt.Errorf("the predecessor says that %q takes %d bytes, there are %d", s.Name, s.Size, left)
		}
		left -= s.Size
	}
	if left != 0 {
		return nil, fmt.Errorf("the predecessor says nothing of the last %d bytes", left)
	}
	return fd.Map(m.files[0], size)
}
