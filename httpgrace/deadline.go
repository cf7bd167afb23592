package httpgrace

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

var longAgo = time.Unix(1, 0)

// A deadline arbitrates the read deadline of a connection between net/http and
// the drain. An interrupted Read has consumed nothing, so the reader can look
// at the state of the drain and read on, unnoticed by net/http.
type deadline struct {
	mu       sync.Mutex
	asked    time.Time // by net/http or a hijacker; zero: none
	until    time.Time // by the drain; zero: none
	asks     int32     // calls of ask since the last reset
	stirred  bool      // the reader shall look up
	released bool      // the drain sets it no more
	taken    bool      // nobody sets it any more
}

// ask is SetReadDeadline as net/http calls it. It returns what was asked before.
func (d *deadline) ask(nc net.Conn, t time.Time) (before time.Time, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before = d.asked
	if !d.taken {
		d.asked = t
	}
	d.asks++
	return before, d.apply(nc)
}

// reset starts counting asks anew.
func (d *deadline) reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asks = 0
}

// count returns the number of asks since the last reset.
func (d *deadline) count() int32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asks
}

// limit makes the reader look up at t; zero: never.
func (d *deadline) limit(nc net.Conn, t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.until.Equal(t) {
		d.until = t
		_ = d.apply(nc) // a closed connection tells its reader
	}
}

// stir makes the reader look up now, or as soon as it reads.
func (d *deadline) stir(nc net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.released {
		d.stirred = true
		_ = d.apply(nc)
	}
}

// take sets the deadline for good.
func (d *deadline) take(nc net.Conn, t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked, d.until, d.stirred = t, time.Time{}, false
	_ = d.apply(nc)
	d.taken = true
}

// release leaves the deadline to a hijacker alone.
func (d *deadline) release(nc net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.until, d.stirred, d.released = time.Time{}, false, true
	_ = d.apply(nc)
}

// ours reports whether a Read failed with err because the reader shall look up.
func (d *deadline) ours(nc net.Conn, err error) bool {
	if !isTimeout(err) {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stirred {
		d.stirred = false
		_ = d.apply(nc)
		return true
	}
	if d.until.IsZero() {
		return false
	}
	return d.asked.IsZero() || d.until.Before(d.asked)
}

func (d *deadline) apply(nc net.Conn) error {
	if d.taken {
		return nil
	}
	t := d.asked
	switch {
	case d.stirred:
		t = longAgo
	case !d.until.IsZero() && (t.IsZero() || d.until.Before(t)):
		t = d.until
	}
	return nc.SetReadDeadline(t)
}

func isTimeout(err error) bool {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
