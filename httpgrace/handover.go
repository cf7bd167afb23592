package httpgrace

import (
	"log"
	"net"
	"time"
)

// What a listener can do beside accepting; see the package comment. Those of
// package upgrader can do all of it.
type (
	// An heir takes an established connection over, for another process. On an
	// error nobody has touched the connection.
	heir interface{ HandOver(net.Conn) error }

	// An adopter knows which of the connections that it has accepted were
	// handed over by another process.
	adopter interface{ Adopted(net.Conn) bool }

	// A replaceable listener knows whether another process accepts in its place.
	replaceable interface{ Replaced() bool }
)

// replaced reports whether another process accepts in the place of l, so that
// nobody needs to be told that this one goes, and connections can be handed over.
func (l *listener) replaced() bool {
	r, ok := l.Listener.(replaceable)
	return ok && r.Replaced()
}

// hasHeir reports whether HandOver may be asked: not when the service stops, as
// far as the listener knows.
func (l *listener) hasHeir() bool {
	_, knows := l.Listener.(replaceable)
	return !knows || l.replaced()
}

// movable reports whether the connection may be handed over when it is at
// rest. It is asked by the goroutine that reads and calls the handler, in a drain.
func (c *conn) movable() bool {
	if c.l.heir == nil || c.has(encrypted|isForeign|kept|diverted) || c.http2.Load() != nil {
		return false
	}
	keep := c.l.s.KeepConn
	return keep == nil || !keep(c.face)
}

// handOver gives the connection, which is at rest, to the successor. It
// reports whether it is gone; if not, it is drained here.
func (c *conn) handOver() bool {
	if !c.movable() {
		return false
	}
	if err := c.l.heir.HandOver(c.Conn); err != nil {
		c.change(0, kept)
		c.l.s.notTaken.Do(func() {
			c.l.s.logf("httpgrace: connections that are not handed over drain here: %v", err)
		})
		return false
	}
	c.change(0, parting) // nothing is left to linger on
	c.l.s.handedOver.Add(1)
	return true
}

// arrive gives an adopted connection the time that an idle one has. It is
// called when net/http gets to know it, as a new one.
func (c *conn) arrive() {
	c.since = c.l.s.now()
	var until time.Time
	if d := either(c.l.s.IdleTimeout, c.l.s.ReadTimeout); d > 0 {
		until = time.Now().Add(d)
	}
	_, _ = c.dl.ask(c.Conn, until) // a closed connection tells its reader
}

// wake is called when the first bytes of an adopted connection's next request
// have come, p[:n], and returns how many there are of it. An empty line may
// come before, which belongs to the request that the predecessor has answered
// (RFC 9112 §2.2).
func (c *conn) wake(p []byte, n int) int {
	empty := 0
	for empty < n && (p[empty] == '\r' || p[empty] == '\n') {
		empty++
	}
	if empty == n {
		return 0
	}
	c.idled = time.Duration(c.l.s.now() - c.since)
	c.begun = true
	var until time.Time
	if d := either(c.l.s.ReadHeaderTimeout, c.l.s.ReadTimeout); d > 0 {
		until = time.Now().Add(d)
	}
	_, _ = c.dl.ask(c.Conn, until)
	return copy(p, p[empty:n])
}

// shift returns the deadline that net/http means by t. It measures the time of
// a connection's first request from the moment at which it was accepted; an
// adopted one has rested meanwhile. Until it wakes, net/http has no say.
func (c *conn) shift(t time.Time) (shifted time.Time, heed bool) {
	switch {
	case !c.begun:
		return t, false
	case t.IsZero() || t.Equal(longAgo):
		return t, true
	}
	return t.Add(c.idled), true
}

func either(d, fallback time.Duration) time.Duration {
	if d != 0 {
		return d
	}
	return fallback
}

func (s *Server) logf(format string, args ...any) {
	if s.ErrorLog != nil {
		s.ErrorLog.Printf(format, args...)
		return
	}
	log.Printf(format, args...)
}
