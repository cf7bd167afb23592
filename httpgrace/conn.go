package httpgrace

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// What is known of a connection, in one word: its http.ConnState in the lowest
// bits, and these.
const (
	stateMask = 1<<3 - 1

	quiet        = 1 << (iota + 2) // nothing of the next request has been delivered
	encrypted                      // net/http runs TLS above it
	counted                        // all requests since net/http's buffer was empty are of the drain
	ended                          // nothing more comes from the client
	parting                        // half-closed by the drain, lingering or closed
	diverted                       // left http1 for http2
	closeBegan                     // Close was called
	socketClosed                   // the socket is closed
	served                         // net/http is through with it: StateClosed
	cut                            // closed at the drain's limit
	isForeign                      // not wrapped: a *tls.Conn of another's making
	adopted                        // handed over by the predecessor, and no request has come since
	kept                           // the successor did not take it
)

// A conn stands between net/http and a connection. It knows from net/http's
// ConnState, reads and deadlines whether the connection is at rest, which is
// when the drain may close it. The goroutine that reads decides what happens;
// others only stir it.
type conn struct {
	net.Conn
	l     *listener // that accepted it
	face  net.Conn  // what net/http and the hooks see: conn, a wrapper, or *tls.Conn above it
	ctx   connContext
	base  context.Context // of its requests: ctx and what the caller's ConnContext made of it
	flags atomic.Uint32
	dl    deadline
	http2 atomic.Pointer[http2Conn] // set when it turns out to be HTTP/2
	tally tally

	// Of the one goroutine that reads and calls the handler.
	since   moment        // at rest since, as far as the drain has seen it, or adopted then
	idled   time.Duration // how long an adopted one was at rest when its next request came
	largest int32         // the largest Read asked for between two requests
	begun   bool          // something was delivered, ever
	looked  bool          // the last look at the socket is being taken
}

// A moment is a time since the server was made, in a third of the room that a
// time.Time takes. 0: none.
type moment int64

func (s *Server) now() moment { return moment(time.Since(s.born)) }

func (s *Server) when(m moment) time.Time { return s.born.Add(time.Duration(m)) }

func (c *conn) init(l *listener, nc, face net.Conn) {
	c.Conn, c.l, c.face = nc, l, face
	c.flags.Store(quiet) // and StateNew, which is 0
}

// NetConn returns the connection as the listener returned it. Reading from it,
// or closing it, goes unnoticed by the drain.
func (c *conn) NetConn() net.Conn { return c.Conn }

func (c *conn) has(flag uint32) bool { return c.flags.Load()&flag != 0 }

func (c *conn) change(drop, set uint32) {
	for {
		old := c.flags.Load()
		if c.flags.CompareAndSwap(old, old&^drop|set) {
			return
		}
	}
}

func (c *conn) state() http.ConnState { return http.ConnState(c.flags.Load() & stateMask) }

// enter follows net/http's ConnState hook.
func (c *conn) enter(nc net.Conn, state http.ConnState) {
	drop := uint32(stateMask | adopted)
	set := uint32(state)
	switch state {
	case http.StateNew:
		if _, ok := nc.(*tls.Conn); ok {
			c.face = nc
			c.tally.records = new(records)
			set |= encrypted
		} else if c.has(adopted) {
			set |= adopted
			c.arrive()
		}
	case http.StateIdle:
		if c.http2.Load() == nil {
			c.dl.reset()
			set |= quiet
		}
	case http.StateHijacked:
		drop |= quiet
		defer c.release()
	default:
		drop |= quiet
	}
	c.change(drop, set)
}

// release ends the drain's hold on the deadline.
func (c *conn) release() {
	if !c.has(isForeign) {
		c.dl.release(c.Conn)
	}
}

// Read reads, and during a drain closes the connection where it may. What is
// hijacked belongs to the hijacker.
func (c *conn) Read(p []byte) (int, error) {
	if c.state() == http.StateHijacked {
		return c.Conn.Read(p)
	}
	first := !c.begun
	n, err := c.read(p)
	if first && n > 0 && c.l.s.h2c {
		return c.sniff(p, n, err)
	}
	return n, err
}

func (c *conn) read(p []byte) (int, error) {
	if c.has(quiet) { // not for a body, which bypasses the buffer
		c.largest = max(c.largest, int32(min(len(p), math.MaxInt32)))
		c.awaits(len(p))
	}
	for {
		if c.l.s.draining.Load() && c.leave(len(p)) {
			return 0, io.EOF
		}
		n, err := c.Conn.Read(p)
		if n > 0 && !c.begun && c.has(adopted) {
			if n = c.wake(p, n); n == 0 && err == nil {
				continue
			}
		}
		if n > 0 {
			c.deliver(p[:n])
			return n, err
		}
		if err != nil && c.dl.ours(c.Conn, err) {
			continue
		}
		if err != nil && !isTimeout(err) {
			c.change(0, ended)
		}
		return n, err
	}
}

// deliver notes that p goes to net/http.
func (c *conn) deliver(p []byte) {
	c.begun = true
	c.tally.got.Add(int64(len(p)))
	if r := c.tally.records; r != nil {
		r.pass(p)
	}
	if st := c.flags.Load(); st&quiet != 0 && !shaking(st) {
		c.change(quiet, 0)
	}
	if c.l.s.draining.Load() {
		c.since, c.looked = 0, false
		c.dl.limit(c.Conn, time.Time{})
	}
}

// shaking reports whether the bytes that arrive may still belong to a TLS
// handshake: then they do not tell a request that has begun from one that has
// not, and only silence does.
func shaking(flags uint32) bool {
	return flags&encrypted != 0 && http.ConnState(flags&stateMask) == http.StateNew
}

// SetReadDeadline sets the deadline that Read observes beside the drain's own.
//
// When net/http has read a request to its end, it removes the deadline and
// begins to read ahead. It removes it once more when it has interrupted that.
func (c *conn) SetReadDeadline(t time.Time) error {
	if c.has(adopted) {
		var heed bool
		if t, heed = c.shift(t); !heed {
			return nil
		}
	}
	before, err := c.dl.ask(c.Conn, t)
	if t.IsZero() && !before.Equal(longAgo) && c.state() == http.StateActive {
		c.ends()
	}
	return err
}

// SetDeadline sets the deadlines of Read and Write.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// CloseWrite shuts down the writing side, if the connection can do that.
func (c *conn) CloseWrite() error {
	if h, ok := c.Conn.(closeWriter); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

type closeWriter interface{ CloseWrite() error }

// Close closes the connection. During a drain it returns at once and lingers
// first, as a close with unread bytes would be a reset, which destroys the end of
// the response if it has not arrived.
func (c *conn) Close() error {
	if c.has(diverted) {
		return nil // http1 lets go of what http2 has taken
	}
	return c.close()
}

func (c *conn) close() error {
	if c.flags.Or(closeBegan)&closeBegan != 0 {
		return net.ErrClosed
	}
	if c.lingers() && c.CloseWrite() == nil {
		c.change(0, parting)
		go func() { // ends within lingerTimeout
			c.linger()
			_ = c.Conn.Close() // nobody is left to be told
			c.leaves(socketClosed)
		}()
		return nil
	}
	err := c.Conn.Close()
	c.leaves(socketClosed)
	return err
}

func (c *conn) lingers() bool {
	return c.l.s.draining.Load() && !c.has(ended|parting|cut) &&
		c.state() != http.StateHijacked && c.http2.Load() == nil
}

// leaves notes that the socket is closed, or that net/http is through. The
// server forgets the connection when both are true; who has hijacked a
// connection is through with it when it is closed.
func (c *conn) leaves(flag uint32) {
	c.change(0, flag)
	st := c.flags.Load()
	if st&socketClosed != 0 && (st&served != 0 || http.ConnState(st&stateMask) == http.StateHijacked) {
		c.l.s.forget(c)
	}
}

// A tcpConn keeps the ways in which net/http and io.Copy spare a copy.
type tcpConn struct{ conn }

// ReadFrom is what makes net/http use sendfile.
func (c *tcpConn) ReadFrom(r io.Reader) (int64, error) {
	tcp, _ := c.Conn.(*net.TCPConn) // track saw to it
	return tcp.ReadFrom(r)
}

// A stater is a connection that is encrypted already; net/http asks it for
// [http.Request.TLS].
type stater interface {
	net.Conn
	ConnectionState() tls.ConnectionState
}

type stateConn struct {
	conn
	stater stater
}

func (c *stateConn) ConnectionState() tls.ConnectionState { return c.stater.ConnectionState() }

// A connContext finds the way from a request to its connection.
type connContext struct {
	context.Context
	c *conn
}

type connKey struct{}

func (ctx *connContext) Value(key any) any {
	switch key {
	case connKey{}:
		return ctx.c
	case http.ServerContextKey:
		return ctx.c.l.s.Server
	}
	return ctx.Context.Value(key)
}
