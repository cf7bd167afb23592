package upgrader

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// controlName is the control socket's among the sockets. It goes from generation
// to generation as they do, behind a gate as theirs: who serves answers.
const controlName = ".control"

const (
	controlTimeout = 5 * time.Second // connected → the request is there
	controlClients = 64              // at once; more wait in the kernel's queue
	controlFrame   = 4 << 10         // the most bytes of a request
	controlPause   = time.Second     // after an error of Accept
	watchInterval  = time.Second     // between two statuses, if nothing happens
	settleTimeout  = time.Second     // confirm → the successor has heard it
	answerTimeout  = 2 * time.Second // Wait → a client that was to be answered
)

// openControl opens the control socket, or takes it over, and serves it until
// this process leaves.
func (u *Upgrader) openControl() error {
	path := u.options.ControlSocket
	if path == "" {
		return nil
	}
	if err := checkControlDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("control socket %s: %w", path, err)
	}
	l, err := u.listen(context.Background(), controlName, "unix", path)
	if err != nil {
		return fmt.Errorf("control socket %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(fmt.Errorf("control socket: %w", err), l.Close())
	}
	go u.serveControl(l)
	return nil
}

// checkControlDir refuses a directory in which somebody else could put a socket
// of theirs in the place of this one.
func checkControlDir(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	err = checkOwner("the directory", dir, fi)
	if err == nil || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return fmt.Errorf("%w: who can write there can replace the socket", err)
}

// serveControl ends when this process leaves: whoever serves then answers.
func (u *Upgrader) serveControl(l *Listener) {
	go func() {
		<-u.done
		_ = l.Close() // its path is not this process's any more
	}()
	room := make(chan struct{}, controlClients)
	for {
		room <- struct{}{}
		c, err := l.Accept()
		switch {
		case err == nil:
			go func() {
				defer func() { <-room }()
				u.attend(c)
			}()
		case errors.Is(err, net.ErrClosed):
			return
		default: // at the limit of descriptors, for example
			<-room
			u.log.Warn("control socket", "pid", os.Getpid(), "generation", u.Generation(), "err", err)
			select {
			case <-time.After(controlPause):
			case <-u.done:
			}
		}
	}
}

// attend answers one client. Nothing that it does or leaves undone holds up
// anybody but itself.
func (u *Upgrader) attend(c net.Conn) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close() // it is nobody's
		return
	}
	conn := wire.NewConn(uc)
	conn.SetLimit(controlFrame)
	verb, s, err := u.request(uc, conn)
	if s != nil {
		u.welcome(s)
		return
	}
	defer c.Close()
	if err != nil {
		u.log.Debug("control request refused", "pid", os.Getpid(), "err", err)
		_ = conn.Send(wire.Answer{Result: wire.ResultRefused, Text: err.Error()}) // the client may have gone
		return
	}
	u.answering.RLock()
	defer u.answering.RUnlock()
	_ = conn.Send(u.obey(conn, verb)) // the same
}

// answered returns when everybody who has asked has his answer: the end of the
// process would take the verdict on an upgrade with it.
func (u *Upgrader) answered() {
	all := make(chan struct{})
	go func() {
		u.answering.Lock() // for good: nobody is attended any more
		close(all)
	}()
	select {
	case <-all:
	case <-time.After(answerTimeout):
	case <-u.hurry:
	}
}

// welcome gives a process that has come for the sockets to run.
func (u *Upgrader) welcome(s *stranger) {
	select {
	case u.joins <- s:
	case <-u.done:
		s.refuse(u.err)
	}
}

// request returns what the client asks for, if it may ask: a verb, or the
// sockets.
func (u *Upgrader) request(c *net.UnixConn, conn *wire.Conn) (verb string, s *stranger, err error) {
	uid, err := fd.PeerUID(c)
	if err != nil {
		return "", nil, err
	}
	if uid != 0 && uid != os.Geteuid() {
		return "", nil, fmt.Errorf("uid %d may not control this process: want uid %d or root", uid, os.Geteuid())
	}
	if err := c.SetReadDeadline(time.Now().Add(controlTimeout)); err != nil {
		return "", nil, err
	}
	m, files, err := conn.Receive()
	closeAll(files)
	if err := errors.Join(err, c.SetReadDeadline(time.Time{})); err != nil {
		return "", nil, err
	}
	switch m := m.(type) {
	case wire.Hello:
		s, err := meet(c, conn, m)
		return "", s, err
	case wire.Request:
		if m.Version != wire.Version {
			return "", nil, fmt.Errorf("the client speaks version %d of the protocol, this build version %d", m.Version, wire.Version)
		}
		return m.Verb, nil, nil
	default:
		return "", nil, fmt.Errorf("got a %T, want a request", m)
	}
}

// obey carries out a request, and sends what happens meanwhile.
func (u *Upgrader) obey(conn *wire.Conn, verb string) wire.Answer {
	switch verb {
	case wire.VerbStatus:
		return u.answer(nil)
	case wire.VerbWatch:
		return u.watch(conn)
	case wire.VerbUpgrade:
		return u.tellingOf(conn, func() error { return u.Upgrade(context.Background()) })
	case wire.VerbPromote:
		return u.tellingOf(conn, func() error { return u.promote(false) })
	case wire.VerbSwap:
		return u.tellingOf(conn, func() error { return u.promote(true) })
	case wire.VerbRollback:
		return u.answer(u.ask(order{rollBack: true}))
	case wire.VerbConfirm:
		return u.tellingOf(conn, func() error { return u.ask(order{}) })
	case wire.VerbStop:
		u.end(stopRequest{service: true})
		return u.answer(nil)
	}
	return wire.Answer{Result: wire.ResultRefused, Text: fmt.Sprintf("%.64q is not a request: want %s, %s, %s, %s, %s, %s, %s or %s", verb,
		wire.VerbStatus, wire.VerbWatch, wire.VerbUpgrade, wire.VerbPromote, wire.VerbSwap, wire.VerbRollback, wire.VerbConfirm, wire.VerbStop)}
}

// tellingOf sends what happens while act goes on, and then its outcome.
func (u *Upgrader) tellingOf(conn *wire.Conn, act func() error) wire.Answer {
	f := u.bus.follow()
	outcome := make(chan error, 1)
	go func() {
		outcome <- act()
		u.bus.leave(f) // what has happened until now is still sent
	}()
	for e := range f.events {
		if conn.Send(wire.Notice{Event: encoded(e)}) != nil {
			break // the client has gone; what it has asked for goes on
		}
	}
	return u.answer(<-outcome)
}

// watch sends a status whenever something happens, until the client goes.
func (u *Upgrader) watch(conn *wire.Conn) wire.Answer {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, files, _ := conn.Receive() // it says nothing more, and then ends
		closeAll(files)
	}()
	f := u.bus.follow()
	defer u.bus.leave(f)
	events := f.events
	for {
		if conn.Send(wire.Notice{Status: encoded(u.Status())}) != nil {
			return u.answer(nil)
		}
		select {
		case _, ok := <-events:
			if !ok {
				events = nil
			}
		case <-time.After(watchInterval):
		case <-gone:
			return u.answer(nil)
		case <-u.done:
			return u.answer(u.err)
		}
	}
}

// answer is the answer for the outcome of a request.
func (u *Upgrader) answer(err error) wire.Answer {
	a := wire.Answer{Result: wire.ResultDone, Status: encoded(u.Status())}
	if err == nil {
		return a
	}
	a.Text = err.Error()
	failed := (*SuccessorError)(nil)
	switch {
	case errors.As(err, &failed) && failed.Phase == PhaseProbation:
		a.Result = wire.ResultRolledBack
	case errors.Is(err, ErrUpgraded), errors.Is(err, ErrStopped), errors.Is(err, ErrAborted), errors.Is(err, ErrRolledBack):
		a.Result = wire.ResultGone
	case errors.Is(err, ErrBusy), errors.Is(err, ErrNotReady), errors.Is(err, errNoProbation), errors.Is(err, ErrNoStandby):
		a.Result = wire.ResultBusy
	default:
		a.Result = wire.ResultFailed
	}
	return a
}

// order is a request to end probation, or an upgrade before that.
type order struct {
	rollBack bool // else confirm
	reply    chan<- error
}

var (
	errNoProbation = errors.New("upgrader: no upgrade is on probation")
	errOperator    = errors.New("an operator asked for it")
)

// ask returns when it is done.
func (u *Upgrader) ask(o order) error {
	reply := make(chan error, 1)
	o.reply = reply
	select {
	case u.orders <- o:
	case <-u.done:
		return u.err
	}
	return <-reply
}

// order ends probation, on whichever side this process is, or an upgrade whose
// successor is not ready yet. For an instant at commit both sides accept; what is
// asked of this one then waits for the answer.
func (r *run) order(o order) {
	switch {
	case r.state == upgrading && r.attempt.phase == PhaseCommit:
		r.held = append(r.held, o)
	case r.state == upgrading && o.rollBack && r.attempt.err == nil: // it may get ready for long
		r.fail(errOperator)
		o.reply <- nil
	case r.state == probation && o.rollBack && r.attempt.named != nil:
		o.reply <- errNoProbation // any more
	case r.state == probation && o.rollBack:
		r.rollBack(rollbackAsked, errOperator)
		o.reply <- nil
	case r.state == probation:
		r.confirmers = append(r.confirmers, o.reply)
		r.confirm()
	case r.state == onProbation && o.rollBack:
		r.stop(stopRequest{failure: errOperator.Error()})
		o.reply <- nil
	case r.state == onProbation:
		r.confirmers = append(r.confirmers, o.reply)
		_ = r.pred.Send(wire.Confirm{}) // if it is gone, this process is confirmed next
	case r.state.final():
		o.reply <- r.err
	default:
		o.reply <- errNoProbation
	}
}

// carryOut does what had to wait until the end of commit.
func (r *run) carryOut() {
	held := r.held
	r.held = nil
	for _, o := range held {
		r.order(o)
	}
}

// answerConfirmers is called when probation is over for this process.
func (r *run) answerConfirmers(err error) {
	for _, reply := range r.confirmers {
		reply <- err
	}
	r.confirmers = nil
}
