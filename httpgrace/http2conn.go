package httpgrace

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// An http2Conn is a connection as the server for HTTP/2 sees it. It follows the
// frames that come in, so that it can slip in one of its own between two of
// the client's.
type http2Conn struct {
	net.Conn // the *tls.Conn, or conn's face in the clear
	conn     *conn
	tls      *tls.ConnectionState // nil: in the clear

	dl      deadline
	closing sync.Once
	closed  chan struct{} // closed by Close

	// The reader's own.
	frames  frames
	since   time.Time // waiting for a request since, as far as the drain has seen it
	unread  string    // what conn has read already
	goAway  []byte    // what remains to be shown of our GOAWAY
	parting bool      // there has been one
}

func newHTTP2Conn(c *conn, nc net.Conn, unread string) *http2Conn {
	h := &http2Conn{Conn: nc, conn: c, unread: unread, closed: make(chan struct{})}
	h.frames.skip = len(clientPreface)
	c.change(stateMask|quiet, uint32(http.StateActive))
	c.http2.Store(h)
	return h
}

// stir makes the reader look at the state of the drain.
func (h *http2Conn) stir() { h.dl.stir(h.Conn) }

// SetReadDeadline sets the deadline that Read observes beside the drain's own.
func (h *http2Conn) SetReadDeadline(t time.Time) error {
	_, err := h.dl.ask(h.Conn, t)
	return err
}

// Read returns what the client sends. During a drain it adds a GOAWAY, as if
// the client had sent it: that is what makes net/http say GOAWAY itself, answer
// the streams that it has, and close.
func (h *http2Conn) Read(p []byte) (int, error) {
	for {
		if h.conn.s.draining.Load() && h.leave() {
			return 0, io.EOF
		}
		if len(h.goAway) > 0 {
			n := copy(p, h.goAway)
			h.goAway = h.goAway[n:]
			return n, nil
		}
		if h.unread != "" {
			n := copy(p, h.unread)
			h.unread = h.unread[n:]
			h.frames.pass(p[:n])
			return n, nil
		}
		n, err := h.Conn.Read(p)
		h.frames.pass(p[:n])
		if n > 0 || err == nil || !h.dl.ours(h.Conn, err) {
			return n, err
		}
	}
}

// leave is called by the reader before each Read of a drain. When the
// connection may go, it prepares the GOAWAY. It reports whether the connection
// is over because the client has not even begun to speak HTTP/2.
func (h *http2Conn) leave() (over bool) {
	silent := h.frames.skip == len(clientPreface)
	if h.parting || h.unread != "" || !silent && !h.frames.between() {
		return false
	}
	if !h.frames.asked {
		now := time.Now()
		if h.since.IsZero() {
			h.since = now
		}
		if until := h.patience(); now.Before(until) {
			h.dl.limit(h.Conn, until)
			return false
		}
	}
	h.dl.limit(h.Conn, time.Time{})
	if silent {
		return true
	}
	h.parting = true
	h.goAway = goAwayFrame(0, noError)
	return false
}

// patience returns until when a connection may live that has asked for nothing
// yet. It may have just been made, by a client that cannot take its first request
// elsewhere; but some clients make more connections than they need.
func (h *http2Conn) patience() time.Time {
	first := h.since.Add(firstRequestTime)
	if until, limited := h.conn.s.patience(h.since); limited && until.Before(first) {
		return until
	}
	return first
}

// Close closes the connection and lets the http1 server's goroutine go.
func (h *http2Conn) Close() error {
	var err error
	h.closing.Do(func() {
		if h.tls == nil {
			err = h.conn.close()
		} else {
			err = h.Conn.Close()
		}
		close(h.closed)
	})
	return err
}
