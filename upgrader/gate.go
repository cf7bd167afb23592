package upgrader

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// aLongTimeAgo is a deadline that interrupts a system call that waits. It is
// kept by the runtime's poller, so the other process does not notice.
var aLongTimeAgo = time.Unix(1, 0)

// gate stands before Accept, or before a packet socket's ReadFrom, in both
// processes: closed in the successor until commit, closed in the predecessor
// after it, and opened again when the successor fails. The socket itself stays
// open all the time: connections wait in the kernel's queue.
//
// While the gate is open and nothing special is due, passing it costs one
// atomic load.
type gate struct {
	interrupt func(time.Time) error // the socket's read deadline

	look atomic.Bool // one of the fields below matters; written under mu

	mu       sync.Mutex
	turn     sync.Cond // any of these has changed
	open     bool
	closed   bool       // by the user
	deadline time.Time  // set by the user
	adopted  []net.Conn // handed over by the predecessor, for Accept to return
	timer    *time.Timer
}

func newGate(open bool, interrupt func(time.Time) error) *gate {
	g := &gate{interrupt: interrupt, open: open}
	g.turn.L = &g.mu
	g.look.Store(!open)
	return g
}

// pass blocks while the gate is closed. It returns a connection that was
// handed over if there is one, nil and nil when the system call may go on, or
// the error that a closed or expired socket reports.
func (g *gate) pass() (net.Conn, error) {
	if !g.look.Load() {
		return nil, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		switch {
		case g.closed:
			return nil, net.ErrClosed
		case g.expired():
			return nil, os.ErrDeadlineExceeded
		case len(g.adopted) > 0:
			c := g.adopted[0]
			g.adopted[0] = nil
			g.adopted = g.adopted[1:]
			return c, nil
		case g.open:
			// The deadline goes back before the flag: whoever sees the flag
			// down finds the socket as the user left it.
			err := g.interrupt(g.deadline)
			g.look.Store(false)
			return nil, err
		}
		g.turn.Wait()
	}
}

// retry reports that err is only the gate's own interruption.
func (g *gate) retry(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.expired()
}

func (g *gate) expired() bool {
	return !g.deadline.IsZero() && !time.Now().Before(g.deadline)
}

// set opens or closes the gate. After it has closed, only a system call that
// was starting at this instant can still take a connection or a packet; the
// caller gets it.
func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == open {
		return
	}
	g.open = open
	if !open {
		g.attention()
	}
	g.turn.Broadcast()
}

// attention makes every caller look at the fields. Called with mu held.
func (g *gate) attention() {
	g.look.Store(true)
	// The error is that of a socket that the user has closed: those who wait
	// return by themselves.
	_ = g.interrupt(aLongTimeAgo)
}

// deliver makes Accept return c. It reports false if the user has closed the
// listener.
func (g *gate) deliver(c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.adopted = append(g.adopted, c)
	g.attention()
	g.turn.Broadcast()
	return true
}

// setDeadline is the user's: it also ends a wait at a closed gate.
func (g *gate) setDeadline(t time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return net.ErrClosed
	}
	if !t.IsZero() {
		// As the socket's own deadline, this one does not move with the wall clock.
		t = time.Now().Add(time.Until(t))
	}
	g.deadline = t
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	if !t.IsZero() {
		g.timer = time.AfterFunc(time.Until(t), g.broadcast)
	}
	if g.look.Load() {
		return nil // pass restores it
	}
	return g.interrupt(t)
}

func (g *gate) broadcast() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.turn.Broadcast()
}

// shut ends every wait for good and returns the connections that nobody
// accepted. The second call returns false.
func (g *gate) shut() (left []net.Conn, first bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, false
	}
	g.closed = true
	g.look.Store(true)
	if g.timer != nil {
		g.timer.Stop()
	}
	left, g.adopted = g.adopted, nil
	g.turn.Broadcast()
	return left, true
}
