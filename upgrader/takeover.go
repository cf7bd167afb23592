package upgrader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// TakeOver says what New does in a process that no predecessor has started, if
// Options.ControlSocket is set.
type TakeOver uint8

// The values of TakeOver.
const (
	TakeOverAuto    TakeOver = iota // take the sockets from whoever answers there; if nobody does, open them
	TakeOverNever                   // open the sockets
	TakeOverRequire                 // take them, or fail with ErrNoPredecessor
)

// envStandby makes a process a standby, whatever its Options say. Its value is
// the path of the executable, if that is not the file that was executed.
const envStandby = "UPGRADER_STANDBY"

// The kinds of what a process that takes over gets besides sockets.
const (
	kindProcess = "process" // a pidfd of the predecessor
	kindPIDFile = "pidfile" // the locked next one
	kindTurn    = "turn"    // for a standby: see turn
)

// takeOver asks the process that answers the control socket for its sockets. It
// returns nil if there is nobody to ask.
func (u *Upgrader) takeOver() (*legacy, error) {
	if u.options.ControlSocket == "" || u.options.TakeOver == TakeOverNever {
		return nil, nil
	}
	if u.sockets.has(controlName) && !pidfileHeld(u.options.PIDFile) {
		return nil, nil // a service manager has kept it, and nobody serves
	}
	// One that dies now still has its sockets and its pidfile for an instant.
	l, err := u.attachUnless(context.Background(), 2*helloTimeout, false, func(err error) bool { return errors.Is(err, errDied) })
	switch {
	case err == nil:
		return l, u.accept(l)
	case errors.Is(err, ErrNoPredecessor) && u.options.TakeOver != TakeOverRequire:
		return nil, nil
	}
	return nil, fmt.Errorf("take over: %w", err)
}

// againTimeout is how long after one try to find who serves the next one is.
const againTimeout = 100 * time.Millisecond

// errDied: the next one who serves may be found, or nobody.
var errDied = fmt.Errorf("%w: who answered has died, or serves no more", ErrNoPredecessor)

// attachUnless tries until it succeeds, or fails with an error after which the
// next try will not do better, or ctx ends. After limit it begins no other try; 0:
// there is none.
func (u *Upgrader) attachUnless(ctx context.Context, limit time.Duration, again bool, next func(error) bool) (*legacy, error) {
	for begun := time.Now(); ; {
		l, err := u.attach(ctx, again)
		if err == nil || !next(err) || limit > 0 && time.Since(begun) > limit {
			return l, err
		}
		select {
		case <-time.After(againTimeout):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// attach asks the process that serves for all that it has. ctx ends the wait,
// which has a limit of its own.
func (u *Upgrader) attach(ctx context.Context, again bool) (*legacy, error) {
	c, err := dialPredecessor(ctx, u.options.ControlSocket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() }) // whatever is waited for fails
	defer stop()
	l := &legacy{channel: c, conn: wire.NewConn(c), taken: true, again: again}
	err = u.handshake(l)
	switch {
	case err == nil && l.conn == nil:
		return nil, errDied
	case err == nil:
		err = u.receive(l)
	}
	if err != nil {
		closeAll(l.files)
		err = l.giveUp(err)
		if isGone(err) {
			err = fmt.Errorf("%w: %w", errDied, err)
		}
		return nil, err
	}
	return l, nil
}

// dialPredecessor connects to a control socket, if it is one that only this
// user or root can have made.
func dialPredecessor(ctx context.Context, path string) (*net.UnixConn, error) {
	if err := checkControlDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	c, err := (&net.Dialer{Timeout: helloTimeout}).DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w at %s: %w", ErrNoPredecessor, path, err)
	case errors.Is(err, syscall.EAGAIN):
		return nil, fmt.Errorf("%s: its queue is full, who serves does not answer it: %w", path, err)
	case err != nil:
		return nil, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%s: connected to a %T", path, c), c.Close())
	}
	uid, err := fd.PeerUID(uc)
	if err == nil && uid != 0 && uid != os.Geteuid() {
		err = fmt.Errorf("%s belongs to uid %d: want uid %d or root", path, uid, os.Geteuid())
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return uc, nil
}

// receive takes the descriptors that follow the manifest, and says each time how
// many have arrived: those that do not fit are lost without a word.
func (u *Upgrader) receive(l *legacy) error {
	want := len(l.manifest.Sockets)
	for len(l.files) < want {
		if err := l.channel.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
			return err
		}
		m, files, err := l.conn.Receive()
		l.files = append(l.files, files...)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("%w: %d of %d descriptors came in %v: %w", ErrAborted, len(l.files), want, helloTimeout, ErrTimeout)
		case err != nil:
			return err
		}
		switch m := m.(type) {
		case wire.Abort:
			return fmt.Errorf("%w: %s", ErrAborted, m.Reason)
		case wire.Descriptors:
			if err := l.counted(m.Count, len(files)); err != nil {
				return err
			}
			// If this fails the predecessor is gone, and the next Receive says so.
			_ = l.conn.Send(wire.Received{Count: len(l.files)})
		default:
			return fmt.Errorf("the predecessor sent a %T, want descriptors", m)
		}
	}
	u.reach("manifest")
	return l.channel.SetReadDeadline(time.Time{})
}

// counted checks one message of descriptors.
func (l *legacy) counted(said, came int) error {
	switch {
	case came != said:
		return fmt.Errorf("of %d descriptors %d arrived: RLIMIT_NOFILE is %d: raise it", said, came, fd.Limit())
	case said == 0 || len(l.files) > len(l.manifest.Sockets):
		return fmt.Errorf("the predecessor sent %d descriptors, and then %d: the manifest has %d",
			len(l.files)-came, said, len(l.manifest.Sockets))
	}
	return nil
}

// accept makes what was received this process's, if all of it is what the
// manifest says.
func (u *Upgrader) accept(l *legacy) error {
	files := l.files
	l.files = nil
	var errs []error
	seen := map[string]bool{}
	for i, m := range l.manifest.Sockets {
		if m.Name != "" && seen[m.Name] {
			errs = append(errs, fmt.Errorf("the manifest names %q twice", m.Name), files[i].Close())
			continue
		}
		seen[m.Name] = true
		if err := u.acceptOne(l, m, files[i]); err != nil {
			errs = append(errs, err, files[i].Close())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return l.giveUp(err)
	}
	return nil
}

func (u *Upgrader) acceptOne(l *legacy, m wire.Socket, f *os.File) error {
	if kept := l.special(m.Kind); kept != nil {
		if *kept != nil {
			return fmt.Errorf("the manifest has two of the kind %s", m.Kind)
		}
		*kept = f
		return nil
	}
	if err := errors.Join(checkName(m.Name), verify(m, f)); err != nil {
		return err
	}
	s := &socket{Socket: m, parked: f, inherited: true}
	if err := s.checkState(m); err != nil {
		return err
	}
	if m.Name == controlName {
		if err := s.seenAt(u.options.ControlSocket); err != nil {
			return err
		}
	}
	u.sockets.supersede(s)
	return nil
}

// special returns where a descriptor goes that is no socket.
func (l *legacy) special(kind string) **os.File {
	switch kind {
	case kindProcess:
		return &l.pidfd
	case kindPIDFile:
		return &l.pidfile
	case kindTurn:
		return &l.turn
	}
	return nil
}

// verify compares a descriptor with what a manifest says of it: what it is,
// whether it listens, and where.
func verify(m wire.Socket, f *os.File) error {
	kind, err := fd.Kind(f)
	if err != nil || m.Kind != kindFile && m.Kind != kind {
		return errors.Join(fmt.Errorf("the manifest says that %q is a %s, it is a %s", m.Name, m.Kind, kind), err)
	}
	if m.Kind == kindFile || m.Address == "" {
		return nil
	}
	bound := (&socket{parked: f}).parkedAddr()
	if bound == nil || !sameNetwork(bound.Network(), m.Network) || !sameBound(bound, m.Address) {
		return fmt.Errorf("the manifest says that %q is bound to %s %s, it is bound to %v", m.Name, m.Network, m.Address, bound)
	}
	return nil
}

// sameNetwork: what was opened as tcp4 calls itself tcp.
func sameNetwork(is, said string) bool {
	return is == said || said == is+"4" || said == is+"6"
}

// sameBound: the path of a unix socket means something in the file system of
// who bound it only, so its last element has to do.
func sameBound(bound net.Addr, said string) bool {
	if isPath(bound.Network(), said) {
		return filepath.Base(bound.String()) == filepath.Base(said)
	}
	return bound.String() == said
}

// seenAt gives a unix socket the path that it has in this process's file
// system, if that is the file which was bound.
func (s *socket) seenAt(path string) error {
	s.Address, s.Requested, s.activated = absolute("unix", path), path, true
	has, err := s.hasPath()
	if err == nil && s.Ino != 0 && !has {
		err = fmt.Errorf("%s was replaced since the process that answers there has bound it: remove it, or upgrade that process", path)
	}
	return err
}

// supersede keeps a socket that was taken over, instead of one that a service
// manager has passed under the same name, or has kept.
func (ss *sockets) supersede(s *socket) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if there := ss.named[s.Name]; there != nil {
		_ = there.parked.Close() // this process has opened nothing yet
	}
	ss.named[s.Name] = s
}

func (ss *sockets) has(name string) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.named[name] != nil
}
