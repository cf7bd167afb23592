package httpgrace

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// Handing over needs to know that nothing of a request has been read, and
// net/http does not say what it holds. atRest concludes it from the reads and
// deadlines of net/http, which could change with any version of Go. So the
// net/http that is linked in is watched with requests of which less and less is
// missing, once, before the first listener is served.

// canHandOver reports whether net/http reads as atRest takes it to.
func (s *Server) canHandOver() bool {
	s.probe.Do(func() {
		err := probe(func(hs *http.Server, ln net.Listener) error { return hs.Serve(ln) })
		if s.probed = err == nil; !s.probed {
			s.logf("httpgrace: connections will not be handed over: this net/http reads in another way: %v", err)
		}
	})
	return s.probed
}

const probeLimit = 5 * time.Second

// probe serves in-memory connections, and looks at the read in which net/http
// waits for what has not come. Only with nothing of a next request sent may it
// look like rest.
func probe(serve func(*http.Server, net.Listener) error) error {
	const first, second = "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n"
	for sent := range len(second) {
		w, err := watch(serve, first, second[:sent])
		if err != nil {
			return err
		}
		if atRest := w == (wait{1, w.largest, w.largest}); atRest != (sent == 0) {
			return fmt.Errorf("with %d bytes of a request sent it has set %d deadlines and offers %d of %d bytes",
				sent, w.deadlines, w.offered, w.largest)
		}
	}
	return nil
}

// A wait is the read in which net/http waits for a request, or the rest of one.
type wait struct {
	deadlines int // that were set since the connection became idle
	offered   int // room for so many bytes
	largest   int // the most that was ever offered
}

// watch sends a request, and what follows it in the same packet.
func watch(serve func(*http.Server, net.Listener) error, first, next string) (wait, error) {
	done := make(chan struct{})
	ln := &connListener{conns: make(chan net.Conn, 1), done: done}
	c := &probeConn{unread: strings.NewReader(first + next), waits: make(chan wait, 1), interrupted: make(chan struct{}, 1)}
	hs := &http.Server{
		Handler:   http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
		ErrorLog:  log.New(io.Discard, "", 0),
		ConnState: c.enter,
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = serve(hs, ln) // that ln is closed
	}()
	ln.conns <- c
	limit := time.NewTimer(probeLimit)
	defer limit.Stop()
	var w wait
	var err error
	select {
	case w = <-c.waits:
	case <-limit.C:
		err = errors.New("it does not wait for a second request")
	}
	close(done)
	<-served
	return w, errors.Join(err, hs.Close())
}

// A probeConn has a request to be read and nothing behind it. The first Read
// that must wait after the answer is the one that is looked at; it ends.
type probeConn struct {
	unread      io.Reader
	interrupted chan struct{} // a deadline in the past was set
	waits       chan wait     // the first one

	mu   sync.Mutex
	idle bool
	wait
}

func (c *probeConn) enter(_ net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if state == http.StateIdle {
		c.idle, c.deadlines = true, 0
	}
}

func (c *probeConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	c.largest = max(c.largest, len(p))
	n, _ := c.unread.Read(p)
	idle := c.idle
	if n == 0 && idle {
		c.offered = len(p)
		select {
		case c.waits <- c.wait:
		default:
		}
	}
	c.mu.Unlock()
	switch {
	case n > 0:
		return n, nil
	case idle:
		return 0, io.EOF
	}
	<-c.interrupted // reads ahead while the handler runs
	return 0, os.ErrDeadlineExceeded
}

func (c *probeConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadlines++
	if !t.IsZero() && t.Before(time.Now()) {
		select {
		case c.interrupted <- struct{}{}:
		default:
		}
	}
	return nil
}

func (c *probeConn) Close() error {
	select {
	case c.interrupted <- struct{}{}:
	default:
	}
	return nil
}

func (c *probeConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *probeConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *probeConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *probeConn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *probeConn) SetWriteDeadline(time.Time) error { return nil }
