package httpgrace

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// An http2Conn is a connection as the server for HTTP/2 sees it. It follows the
// frames in both directions, so that it can slip in some of its own between two.
//
// Its farewell has the two steps of RFC 9113 §6.8. First the client gets a GOAWAY
// that refuses nothing: it opens no more streams, but those that are on their
// way are welcome. When these must have arrived, net/http is shown a GOAWAY as if
// the client had sent it: that makes net/http say GOAWAY itself, with the last
// stream that it has seen, answer the streams that it has, and close.
type http2Conn struct {
	net.Conn // the *tls.Conn, or conn's face in the clear
	conn     *conn
	tls      *tls.ConnectionState // nil: in the clear

	dl      deadline
	closing sync.Once
	closed  chan struct{} // closed by Close

	// The reader's own.
	frames frames
	since  time.Time // waiting for a request since, as far as the drain has seen it
	asked  time.Time // its first request began
	warned time.Time // the first step was taken
	parted bool      // the second, too
	unread string    // what conn has read already
	goAway []byte    // what remains to be shown of our GOAWAY

	warning atomic.Bool // the first step is to be taken at the next boundary

	writing sync.Mutex // guards what follows
	out     frames
	begun   bool // net/http has written, and what comes first must: its SETTINGS
}

func newHTTP2Conn(c *conn, nc net.Conn, unread string) *http2Conn {
	h := &http2Conn{Conn: nc, conn: c, unread: unread, closed: make(chan struct{})}
	h.frames.skip = len(clientPreface)
	c.change(stateMask|quiet|adopted, uint32(http.StateActive))
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

// Read returns what the client sends, and during a drain takes leave.
func (h *http2Conn) Read(p []byte) (int, error) {
	for {
		if h.conn.l.s.draining.Load() && h.leave() {
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
			h.pass(p[:n])
			return n, nil
		}
		n, err := h.Conn.Read(p)
		h.pass(p[:n])
		if n > 0 || err == nil || !h.dl.ours(h.Conn, err) {
			return n, err
		}
	}
}

// pass notes that p has been read.
func (h *http2Conn) pass(p []byte) {
	h.frames.pass(p)
	if h.frames.asked && h.asked.IsZero() {
		h.asked = time.Now()
	}
}

// leave is called by the reader before each Read of a drain, and takes the next
// step of the farewell when it is time. It reports whether the connection is over
// because the client has not even begun to speak HTTP/2.
func (h *http2Conn) leave() (over bool) {
	if h.parted || h.unread != "" {
		return false
	}
	now := time.Now()
	if h.since.IsZero() {
		h.since = now
	}
	if h.warned.IsZero() {
		if h.awaits(now, h.warnAt()) {
			return false
		}
		if h.frames.skip == len(clientPreface) {
			return true
		}
		h.warned = now
		h.warning.Store(true)
		h.warn()
	}
	if h.awaits(now, h.partAt()) || !h.frames.between() {
		return false
	}
	h.parted = true
	h.goAway = goAwayFrame(0, noError)
	return false
}

// awaits reports whether t is to come, and if so makes the reader look up then.
func (h *http2Conn) awaits(now, t time.Time) bool {
	if !now.Before(t) {
		h.dl.limit(h.Conn, time.Time{})
		return false
	}
	h.dl.limit(h.Conn, t)
	return true
}

// warnAt returns when to take the first step. The connection may have just been
// made, by a client that cannot take its first request elsewhere, or is about to
// send more of them; but some clients make more connections than they need.
func (h *http2Conn) warnAt() time.Time {
	if h.asked.IsZero() {
		return h.unlessDismissed(h.since.Add(firstRequestTime))
	}
	return h.unlessDismissed(h.asked.Add(freshTime))
}

// partAt returns when to take the second step. A round trip would do for a client
// that reads and writes in one place. In others a stream that has its number
// already may be sent after the answer to the PING, so there is a second for it.
func (h *http2Conn) partAt() time.Time {
	if h.frames.echoed {
		return h.unlessDismissed(h.warned.Add(goAwayTime))
	}
	return h.unlessDismissed(h.warned.Add(goAwayLimit))
}

// unlessDismissed returns t, or the time at which patience has ended.
func (h *http2Conn) unlessDismissed(t time.Time) time.Time {
	if d := h.conn.l.s.dismissal.Load(); d != nil && d.Before(t) {
		return *d
	}
	return t
}

// warn takes the first step if the stream is between two frames. It does not
// wait for who is writing, because it is called by the reader, and the client may
// be waiting to be read. Who is writing calls it afterwards.
func (h *http2Conn) warn() {
	for h.warning.Load() && h.writing.TryLock() {
		possible := h.begun && h.out.between()
		if possible {
			_, _ = h.Conn.Write(h.warnings()) // a closed connection tells its reader
		}
		h.writing.Unlock()
		if !possible {
			return // the next Write has the boundary
		}
	}
}

// warnings are the frames of the first step.
func (h *http2Conn) warnings() []byte {
	h.warning.Store(false)
	return append(goAwayFrame(maxStream, noError), pingFrame()...)
}

// Write writes whole and partial frames, and slips the first step in between.
func (h *http2Conn) Write(p []byte) (int, error) {
	n, err := h.write(p)
	h.warn()
	return n, err
}

func (h *http2Conn) write(p []byte) (int, error) {
	h.writing.Lock()
	defer h.writing.Unlock()
	h.begun = true
	k := len(p)
	if h.warning.Load() {
		k = h.out.passOne(p)
	} else {
		h.out.pass(p)
	}
	if k == len(p) {
		return h.Conn.Write(p) // warn sees to the rest
	}
	own := h.warnings()
	h.out.pass(p[k:])
	n, err := h.Conn.Write(slices.Concat(p[:k], own, p[k:]))
	return min(n, max(k, n-len(own))), err
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
