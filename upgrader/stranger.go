package upgrader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// stranger is a process that this one has not started, and that has come to the
// control socket for the sockets: the carrier take over.
type stranger struct {
	channel *net.UnixConn
	conn    *wire.Conn
	hello   wire.Hello
	pid     int      // as it is known here; that of another pid namespace is not
	written int      // which writing of the states it has got
	given   bool     // it has been sent descriptors
	pidfd   *os.File // nil: not known, its channel tells of its end
}

// meet finds out who has sent hello.
func meet(c *net.UnixConn, conn *wire.Conn, hello wire.Hello) (*stranger, error) {
	conn.SetLimit(wire.MaxFrame)
	pid, err := fd.PeerPID(c)
	if err != nil {
		return nil, err
	}
	if hello.Version != wire.Version {
		return nil, fmt.Errorf("it speaks version %d of the handover protocol, this build version %d", hello.Version, wire.Version)
	}
	if pid == 0 { // it is in a pid namespace that this process does not see
		pid = hello.PID
	}
	return &stranger{channel: c, conn: conn, hello: hello, pid: pid, pidfd: fd.PeerProcess(c)}, nil
}

// refuse sends a process away. It may be waiting for descriptors, or not read.
func (s *stranger) refuse(why error) {
	_ = s.conn.Send(wire.Abort{Reason: why.Error()}) // if it is gone, nobody asks
	s.close()
}

// sendOn sends a process to who serves now.
func (s *stranger) sendOn() {
	_ = s.conn.Send(wire.Moved{}) // if it is gone, nobody asks
	s.close()
}

func (s *stranger) close() {
	_ = s.conn.Close() // nothing more is said
	if s.pidfd != nil {
		_ = s.pidfd.Close() // nothing was written
	}
}

// expel is refuse for a process that may hold the lock and the pidfile by now:
// while it does, no standby can serve. New lets go of them before it closes its
// channel. A process that keeps that open hangs, and is ended.
func (s *stranger) expel(why error) {
	if !s.given {
		s.refuse(why)
		return
	}
	_ = s.conn.Send(wire.Abort{Reason: why.Error()}) // if it is gone, nobody asks
	_ = s.channel.CloseWrite()                       // the same
	go func() {
		defer s.close()
		_ = s.channel.SetReadDeadline(time.Now().Add(helloTimeout)) // Copy says so if it is closed
		if _, err := io.Copy(io.Discard, s.channel); err != nil && !isGone(err) {
			_ = s.signal(os.Kill) // it may have ended at this instant
		}
	}()
}

// joined is a process that has come for the sockets.
func (r *run) joined(s *stranger) {
	if s.hello.Standby {
		r.enlist(s)
		return
	}
	if err := r.refusal(request{ctx: context.Background(), stranger: s}); err != nil {
		go s.refuse(err)
		return
	}
	m := r.manifest(nil, r.counters)
	r.upgrade(request{
		ctx: context.Background(), reply: make(chan error, 1), stranger: s,
		carrier: func(ctx context.Context) (*successor, error) { return r.takenBy(ctx, s, m) },
	})
}

// takenBy hands everything to a process that has come for it. What can fail
// here is tried first; nothing has happened if it returns an error, but for the
// pidfile, which the caller rolls back.
func (u *Upgrader) takenBy(ctx context.Context, s *stranger, m wire.Manifest) (*successor, error) {
	u.reach("prepare")
	next, err := u.nextPIDFile(s.pid)
	if err != nil {
		s.refuse(err)
		return nil, u.strangerError(PhasePrepare, s.pid, err)
	}
	u.reach("started")
	var more []extra
	if next != nil {
		more = append(more, extra{kindPIDFile, next})
	}
	given, err := u.give(ctx, s, m, more)
	if isGone(err) {
		err = errEnded
	}
	if err != nil {
		s.expel(err)
		return nil, u.strangerError(PhaseHello, s.pid, err)
	}
	return u.followStranger(s, given), nil
}

// nextPIDFile returns the locked file that names process pid, for it to inherit.
// It remains the pidfile's.
func (u *Upgrader) nextPIDFile(pid int) (*os.File, error) {
	next, err := u.pidfile.prepare()
	if err == nil {
		err = u.pidfile.name(pid)
	}
	return next, err
}

// extra is a descriptor that is no socket.
type extra struct {
	kind string
	file *os.File
}

// give sends the manifest and all descriptors, and returns when all have arrived.
func (u *Upgrader) give(ctx context.Context, s *stranger, m wire.Manifest, more []extra) (given []wire.Socket, err error) {
	var states []wire.Socket
	var memory []*os.File
	if !s.hello.Again {
		s.meanwhile("the states are being written, or an upgrade is under way", func() {
			states, memory, err = u.statesFor(ctx, s)
		})
		if err != nil {
			return nil, err
		}
		defer closeAll(memory)
	}
	meta, files, err := u.sockets.duplicate()
	if err != nil {
		return nil, err
	}
	defer closeAll(files)
	if self := fd.ThisProcess(); self != nil {
		defer self.Close() // nothing was written
		more = append(more, extra{kindProcess, self})
	}
	given = meta
	meta, files = slices.Concat(meta, states), slices.Concat(files, memory)
	for _, e := range more { // first of all: the lower number is closed first, if the receiver dies
		meta, files = slices.Insert(meta, 0, wire.Socket{Kind: e.kind}), slices.Insert(files, 0, e.file)
	}
	if s.hello.Standby {
		meta, files = withoutTurn(meta, files)
	}
	m.Sockets = meta
	if err := s.conn.Send(m); err != nil {
		return nil, err
	}
	if err := s.carry(ctx, files); err != nil {
		return nil, err
	}
	return given, nil
}

// statesFor writes the states for a process that has come. A successor has them until
// ctx, that of its attempt, ends; a standby does not need them any more.
func (u *Upgrader) statesFor(ctx context.Context, s *stranger) (meta []wire.Socket, memory []*os.File, err error) {
	if s.hello.Standby {
		c, cancel := context.WithCancel(ctx)
		defer cancel()
		ctx = c
	}
	meta, memory, s.written, err = u.writeStates(ctx)
	return meta, memory, err
}

// workingInterval is how often a process that waits for its manifest is told that
// it has not been forgotten.
const workingInterval = helloTimeout / 4

// meanwhile tells it so as long as do lasts.
func (s *stranger) meanwhile(text string, do func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-time.After(workingInterval):
				_ = s.conn.Send(wire.Progress{Text: text}) // if it is gone, the manifest's Send says so
			case <-done:
				return
			}
		}
	}()
	do()
	close(done)
	<-ended
}

// carry sends the descriptors, so many at a time that no limit of the kernel is
// met (SCM_MAX_FD, and that of descriptors under way).
func (s *stranger) carry(ctx context.Context, files []*os.File) error {
	for sent := 0; sent < len(files); {
		batch := files[sent:min(sent+wire.MaxRights, len(files))]
		numbers, err := numbersOf(batch)
		if err != nil {
			return err
		}
		s.given = true
		if err := s.conn.Send(wire.Descriptors{Count: len(batch)}, numbers...); err != nil {
			return err
		}
		sent += len(batch)
		if err := s.acknowledge(ctx, sent); err != nil {
			return err
		}
	}
	return nil
}

// numbersOf returns the numbers of files, which stay open for longer than
// these are used. File.Fd would change what the other process shares.
func numbersOf(files []*os.File) ([]int, error) {
	numbers := make([]int, len(files))
	for i, f := range files {
		rc, err := f.SyscallConn()
		if err == nil {
			err = rc.Control(func(fd uintptr) { numbers[i] = int(fd) })
		}
		if err != nil {
			return nil, err
		}
	}
	return numbers, nil
}

// acknowledge waits until the stranger has said that so many descriptors have
// arrived. The end of ctx ends that.
func (s *stranger) acknowledge(ctx context.Context, sent int) error {
	if err := s.channel.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.channel.SetReadDeadline(aLongTimeAgo) })
	defer stop()
	m, files, err := s.conn.Receive()
	closeAll(files)
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: it did not acknowledge %d descriptors in %v", ErrTimeout, sent, helloTimeout)
	case err != nil:
		return err
	}
	switch m := m.(type) {
	case wire.Failed:
		return fmt.Errorf("it gave up: %s", m.Text)
	case wire.Received:
		if m.Count != sent {
			return fmt.Errorf("it has received %d of %d descriptors", m.Count, sent)
		}
		if !stop() { // too late for the deadline
			return context.Cause(ctx)
		}
		return s.channel.SetReadDeadline(time.Time{})
	default:
		return fmt.Errorf("it sent a %T, want an acknowledgement of %d descriptors", m, sent)
	}
}

// followStranger watches a process that has all descriptors: its words and its
// end.
func (u *Upgrader) followStranger(s *stranger, given []wire.Socket) *successor {
	n := &successor{
		peer: newPeer(s.conn, s.pid, nil), exited: make(chan struct{}), signal: s.signal,
		given: given, build: s.hello.Build, stranger: s,
	}
	go func() {
		if s.pidfd != nil {
			_ = fd.AwaitEnd(s.pidfd) // it fails if nobody wants to know any more
			defer s.pidfd.Close()
		} else {
			<-n.ended
		}
		close(n.exited)
		_ = n.CloseRead() // as in follow
	}()
	return n
}

// signal sends the process a signal, if this system can.
func (s *stranger) signal(sig os.Signal) error {
	number, ok := sig.(syscall.Signal)
	if !ok || s.pidfd == nil {
		return errors.ErrUnsupported
	}
	return fd.SignalProcess(s.pidfd, number)
}

// takenOver stands for the path of an executable that nobody here knows.
const takenOver = "take over"

// strangerError is attemptError for a process that nobody here has executed.
func (u *Upgrader) strangerError(phase Phase, pid int, err error) *SuccessorError {
	e := u.attemptError(phase, err)
	e.Path, e.PID = takenOver, pid
	return e
}
