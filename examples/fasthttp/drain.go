package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/go-handover/handover/upgrader"
)

// A drain is the listener that a fasthttp.Server serves, and ends that server
// without losing a request: see the top of main.go.
type drain struct {
	net.Listener
	up         *upgrader.Upgrader
	begun      context.Context
	begin      context.CancelFunc
	idleWait   time.Duration  // for one more request
	open       sync.WaitGroup // connections that fasthttp has not closed
	handedOver atomic.Int64
}

func newDrain(up *upgrader.Upgrader, ln net.Listener, idleWait time.Duration) *drain {
	d := &drain{Listener: ln, up: up, idleWait: idleWait}
	d.begun, d.begin = context.WithCancel(context.Background())
	return d
}

// Accept wraps each connection.
func (d *drain) Accept() (net.Conn, error) {
	nc, err := d.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, d: d}
	stop := context.AfterFunc(d.begun, c.wake)
	d.open.Add(1)
	c.ended = sync.OnceFunc(func() { stop(); d.open.Done() })
	return c, nil
}

// connState follows fasthttp's ConnState hook. A connection that was wrapped
// once more, by crypto/tls for example, is never at rest, so it stays here.
func (d *drain) connState(nc net.Conn, state fasthttp.ConnState) {
	if c, ok := nc.(*conn); ok {
		c.atRest.Store(state == fasthttp.StateNew || state == fasthttp.StateIdle)
	}
}

// handler lets the last response on a connection say so. It looks when the
// response is made, because the drain may have begun meanwhile.
func (d *drain) handler(h fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		h(ctx)
		if d.begun.Err() != nil && d.isLast(ctx.Conn()) {
			ctx.SetConnectionClose()
		}
	}
}

// isLast reports that nc does not go on after this response.
func (d *drain) isLast(nc net.Conn) bool {
	c, ok := nc.(*conn)
	return !ok || c.last.Load() || errors.Is(d.up.Err(), upgrader.ErrStopped)
}

// run drains. The server's Serve must have returned, so that all connections
// are known.
func (d *drain) run() {
	d.begin()
	ended := make(chan struct{})
	go func() { d.open.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-d.up.Hurry(): // the end of the process closes the rest
	}
}

// A conn hands itself over from within Read. That is the one place where it is
// known that no Read is under way and that fasthttp has no byte of a request. It
// reads from a connection at rest only if its buffer is empty, and then all its
// responses are flushed; and it calls the connection active before it reads again.
type conn struct {
	net.Conn
	d      *drain
	ended  func()
	atRest atomic.Bool // new or between two requests
	last   atomic.Bool // one more request, and no more
	until  time.Time   // it is waited for; zero: last is false. Of the goroutine that reads

	mu    sync.Mutex
	limit time.Time // the read deadline that fasthttp has set
	woken bool      // another one is in force, in the past
}

func (c *conn) Read(p []byte) (int, error) {
	for {
		if c.d.begun.Err() != nil && c.atRest.Load() && c.leave() {
			return 0, io.EOF // fasthttp closes it, without a word
		}
		n, err := c.Conn.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || !c.wasWoken() {
			return n, err
		}
	}
}

// leave ends this process's part in a connection at rest. It reports false if
// one more request is waited for, as the response before it may not have said
// Connection: close.
func (c *conn) leave() bool {
	ln, ok := c.d.Listener.(*upgrader.Listener) // as up.Listen says
	if ok && errors.Is(c.d.up.Err(), upgrader.ErrUpgraded) && ln.HandOver(c.Conn) == nil {
		c.d.handedOver.Add(1)
		return true
	}
	if c.until.IsZero() {
		c.until = time.Now().Add(c.d.idleWait)
		c.last.Store(true)
		time.AfterFunc(c.d.idleWait, c.wake) // does nothing to one that is closed
	}
	return !time.Now().Before(c.until)
}

// wake interrupts a Read that waits, and takes nothing out of the socket.
func (c *conn) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.woken = c.Conn.SetReadDeadline(time.Unix(1, 0)) == nil
}

// wasWoken puts fasthttp's deadline back if a Read ended because of wake.
func (c *conn) wasWoken() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.woken {
		return false
	}
	c.woken = false
	return c.Conn.SetReadDeadline(c.limit) == nil
}

// SetReadDeadline undoes wake, but the next Read looks for itself.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit, c.woken = t, false
	return c.Conn.SetReadDeadline(t)
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *conn) Close() error {
	defer c.ended()
	return c.Conn.Close()
}
