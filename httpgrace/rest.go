package httpgrace

import (
	"crypto/tls"
	"net/http"
	"time"
)

// lookTime is how long the last look at a socket takes that cannot be peeked at.
const lookTime = 5 * time.Millisecond

// stir makes the connection look at the state of the drain.
func (c *conn) stir() {
	if h := c.http2.Load(); h != nil {
		h.stir()
		return
	}
	if c.has(isForeign) {
		c.stirForeign()
		return
	}
	c.dl.stir(c.Conn)
}

// stirForeign makes net/http give up on a connection whose reads we do not see,
// if it is idle. When a request arrives before, net/http sets another deadline.
func (c *conn) stirForeign() {
	if st := c.state(); st != http.StateIdle && st != http.StateNew {
		return
	}
	if until, limited := c.l.s.patience(time.Now()); limited {
		_ = c.Conn.SetReadDeadline(until)
	}
}

// leave is called by the reader before each Read of a drain. It reports whether
// the connection is over: it was at rest and is handed over, or no request came
// and it is half-closed. Otherwise the Read must go on, and is interrupted when
// it is time to ask again.
func (c *conn) leave(size int) bool {
	if !c.atRest(size) {
		c.since = 0
		c.dl.limit(c.Conn, time.Time{})
		return false
	}
	if c.handOver() {
		return true
	}
	now := time.Now()
	if c.since == 0 {
		c.since = c.l.s.now()
	}
	until, limited := c.l.s.patience(c.l.s.when(c.since))
	if !limited || now.Before(until) {
		c.dl.limit(c.Conn, until)
		return false
	}
	if c.waiting(now) {
		return false
	}
	c.part()
	return true
}

// atRest reports whether the Read of this size, which is about to begin, waits
// for the first byte of a request.
//
// A connection that is new is at rest until its first byte, or, under TLS, when
// it is silent. Later it depends on what net/http holds. It reads through one
// buffer, and between two requests it sets the read deadline once, waits for four
// bytes, and sets it again before it reads on. So it waits for the first byte if it has
// set the deadline once and offers the whole buffer. Under TLS the buffer is out
// of sight; there, nothing may have come since the end of the last request. (Not
// seen is a request of which the first one to three bytes came together with the
// end of the one before, and no more until the last call. It is counted as late.)
func (c *conn) atRest(size int) bool {
	st := c.flags.Load()
	switch {
	case st&quiet == 0:
		return false
	case http.ConnState(st&stateMask) == http.StateNew:
		return true
	case c.dl.count() != 1:
		return false
	case st&encrypted != 0:
		return !c.ahead()
	}
	return size == int(c.largest)
}

// waiting reports whether to read on because something is waiting to be read, or
// may be.
func (c *conn) waiting(now time.Time) bool {
	some, known := peek(c.Conn)
	if !known && !c.looked {
		c.looked = true
		c.dl.limit(c.Conn, now.Add(lookTime))
		return true
	}
	c.dl.limit(c.Conn, time.Time{})
	return some
}

// part half-closes a connection at rest and waits for the client to do the same.
func (c *conn) part() {
	c.change(0, parting)
	c.l.s.closedIdle.Add(1)
	if t, ok := c.face.(*tls.Conn); ok {
		_ = t.CloseWrite() // close_notify; an unfinished handshake has none to send
	}
	if c.CloseWrite() == nil && c.linger() {
		c.l.s.late.Add(1)
	}
}

// linger reads and discards until the client has closed too, for a second at
// most: the socket of someone who still sends must not be closed, as that
// would be answered with a reset. It reports whether a request has come.
func (c *conn) linger() (late bool) {
	c.dl.take(c.Conn, time.Now().Add(lingerTimeout))
	var buf [512]byte
	var first byte
	total := 0
	for {
		n, err := c.Conn.Read(buf[:])
		if total == 0 && n > 0 {
			first = buf[0]
		}
		total += n
		if err != nil {
			break
		}
	}
	if !c.has(encrypted) {
		return total > 0
	}
	const alertRecord, alertSize = 21, 24 // up to TLS 1.2 by its type, in TLS 1.3 by its size
	return first != alertRecord && total > alertSize
}
