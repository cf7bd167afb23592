package upgrader

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/fd"
)

// stream is what net's TCP and unix listeners have in common.
type stream interface {
	net.Listener
	syscall.Conn
	SetDeadline(time.Time) error
}

// Listener is what Listen returns: a listening socket behind the gate.
//
// Accept blocks until this process is committed, and again after it has been
// replaced, until Close or the deadline. The connections that it returns are
// those of package net, unwrapped.
//
// Close closes this process's descriptor only: the socket lives on in the
// other process. The path of a unix socket is unlinked only by the committed
// process, and only while it still is the file that was bound.
type Listener struct {
	sock  *socket
	inner stream
	gate  *gate
	keep  func(net.Conn) // sets keep-alive as the ListenConfig says; nil: as it comes
	owner *Upgrader

	adopted adopted // of the connections that Accept has returned
}

var (
	_ net.Listener = (*Listener)(nil)
	_ syscall.Conn = (*Listener)(nil)
)

// Accept waits for the next connection, new or handed over by the predecessor.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.gate.pass()
		if err != nil {
			return nil, l.opError(err)
		}
		if c != nil {
			l.adopted.add(c)
			return c, nil
		}
		c, err = l.inner.Accept()
		switch {
		case err == nil:
			if l.keep != nil {
				l.keep(c)
			}
			return c, nil
		case !l.gate.retry(err):
			return nil, err
		}
	}
}

func (l *Listener) opError(err error) error {
	return &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: err}
}

// Addr returns the address that the socket is bound to.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// SetDeadline bounds Accept, also while the gate is closed. The zero time
// removes the limit.
func (l *Listener) SetDeadline(t time.Time) error { return l.gate.setDeadline(t) }

// SyscallConn gives access to the descriptor, for options. The description is
// shared with the other processes of the service: what is set here is set there.
func (l *Listener) SyscallConn() (syscall.RawConn, error) { return l.inner.SyscallConn() }

// Close ends Accept and closes this process's descriptor. Idempotent.
// Connections that were handed over and not yet accepted go on to the
// successor, or are closed if there is none.
func (l *Listener) Close() error {
	left, first := l.gate.shut()
	if !first {
		return nil
	}
	l.owner.sockets.remove(l.sock)
	err := l.inner.Close()
	if l.owner.isCommitted() {
		err = errors.Join(err, l.sock.unlink())
	}
	for _, c := range left {
		if l.HandOver(c) != nil {
			err = errors.Join(err, c.Close())
		}
	}
	return err
}

// HandOver gives c, an established connection, to the successor's listener of
// the same name, whose Accept returns it. It works in a draining process, that
// is after Done was closed by an upgrade.
//
// It blocks until the successor has answered, at most a few seconds. On nil
// the successor has the connection and this process's copy is closed. On an
// error nobody but the caller has touched c, which stays the caller's. No
// Read or Write may be under way, and nothing that was read from c may be
// unanswered: the successor knows no history. c must be as Accept has returned
// it: what wraps a connection, as crypto/tls does, has state that would be lost.
func (l *Listener) HandOver(c net.Conn) error {
	var sc syscall.Conn
	switch c := c.(type) {
	case *net.TCPConn:
		sc = c
	case *net.UnixConn:
		sc = c
	default:
		return fmt.Errorf("upgrader: hand over %T: want a *net.TCPConn or *net.UnixConn, as Accept returns it", c)
	}
	if err := l.owner.handOver(l.sock.Name, sc); err != nil {
		return fmt.Errorf("upgrader: hand over %v: %w", c.RemoteAddr(), err)
	}
	_ = c.Close() // the successor's descriptor keeps the connection alive
	return nil
}

// Adopted reports whether c, which Accept has returned, was handed over by the
// predecessor: then it is not new, and it may have been idle for long.
func (l *Listener) Adopted(c net.Conn) bool { return l.adopted.has(c) }

// Replaced reports whether this process drains because another one has taken
// its place: connections can be handed over, and who asks for the health of the
// service is answered by that one. It is false when the service stops.
func (l *Listener) Replaced() bool { return errors.Is(l.owner.Err(), ErrUpgraded) }

// keepAlive returns what makes an accepted connection keep alive as lc says.
// The settings live in the net.Listener, not in the socket, so an inherited
// one has lost them.
func keepAlive(lc *net.ListenConfig) func(net.Conn) {
	if lc == nil || lc.KeepAlive == 0 && !lc.KeepAliveConfig.Enable {
		return nil // net's defaults, which Accept has set
	}
	return func(c net.Conn) {
		tc, ok := c.(*net.TCPConn)
		if !ok {
			return
		}
		// Errors are those of a connection that is gone: its first Read says so.
		switch {
		case lc.KeepAliveConfig.Enable:
			_ = tc.SetKeepAliveConfig(lc.KeepAliveConfig)
		case lc.KeepAlive < 0:
			_ = tc.SetKeepAlive(false)
		default:
			_ = tc.SetKeepAlivePeriod(lc.KeepAlive)
		}
	}
}

// asStream makes sure that ln can be handed over.
func asStream(ln net.Listener) (stream, error) {
	s, ok := ln.(stream)
	if !ok {
		return nil, fmt.Errorf("%T cannot be handed over: want a *net.TCPListener or *net.UnixListener", ln)
	}
	if kind, err := fd.Kind(s); err == nil && kind != kindListener {
		return nil, fmt.Errorf("%v is a %s socket, want a listening one", ln.Addr(), kind)
	}
	return s, nil
}

// keepPath makes ln leave a unix socket's path alone: it belongs to the
// committed process, not to whoever closes.
func keepPath(ln net.Listener) {
	if ul, ok := ln.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(false)
	}
}
