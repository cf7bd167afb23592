package httpgrace

import (
	"math"
	"net/http"
	"sync/atomic"
)

// smallestRequest is the length of "GET / HTTP/1.0" and an empty line.
const smallestRequest = 18

// recordOverhead is what a TLS record adds to a request, at most.
const recordOverhead = 29

// A tally counts the bytes that net/http has read, as net/http does not show
// what it has read ahead. It answers two questions: has another request been
// read behind this one, and, under TLS, has the next one begun?
type tally struct {
	got  atomic.Int64 // read so far
	mark atomic.Int64 // got when the last request had been read to its end

	// Of the goroutine that reads between requests and calls the handler. They
	// hold while the flag counted is set.
	base int64 // got when net/http's buffer was empty
	used int64 // by requests since then
}

// awaits is called before each Read between two requests.
func (c *conn) awaits(size int) {
	t := &c.tally
	switch st := c.flags.Load(); {
	case shaking(st):
		t.base = math.MaxInt64 // no telling how much is handshake: take it all for that
	case st&encrypted != 0 && !c.ahead():
		t.base = t.got.Load() + recordOverhead
	case st&encrypted == 0 && size == int(c.largest):
		t.base = t.got.Load()
	default:
		return
	}
	t.used = 0
	c.change(0, counted)
}

// ahead reports whether something came after the end of the last request.
func (c *conn) ahead() bool { return c.tally.got.Load() != c.tally.mark.Load() }

// ends is called when a request has been read to its end. Requests before the
// drain are not measured, so that they cost nothing.
func (c *conn) ends() {
	c.tally.mark.Store(c.tally.got.Load())
	if !c.l.s.draining.Load() {
		c.change(counted, 0)
	}
}

// behind reports whether another whole request may have been read behind r,
// which is of the drain. Then r's response must not announce the close, as
// net/http would drop the other.
func (c *conn) behind(r *http.Request) bool {
	if !c.has(counted) {
		return true
	}
	t := &c.tally
	t.used += requestSize(r)
	return t.got.Load()-t.base-t.used >= smallestRequest
}

// requestSize returns how long r was when it was sent, if it was written as
// most are. A chunked body is taken for endless.
func requestSize(r *http.Request) int64 {
	if r.ContentLength < 0 {
		return math.MaxInt32
	}
	size := len(r.Method) + len(" ") + len(r.RequestURI) + len(" HTTP/1.1\r\n")
	size += len("Host: \r\n") + len(r.Host)
	for name, values := range r.Header {
		for _, value := range values {
			size += len(name) + len(": ") + len(value) + len("\r\n")
		}
	}
	return int64(size+len("\r\n")) + r.ContentLength
}
