package httpgrace

import (
	"crypto/tls"
	"math"
	"net/http"
	"strings"
	"sync/atomic"
)

// smallestRequest is the length of "GET / HTTP/1.0" and an empty line.
const smallestRequest = 18

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

	records *records // nil: no TLS
}

// records counts the records of TLS in a stream of bytes (RFC 8446 §5.1). Of
// what was read, a part of each is not the client's.
type records struct {
	header [recordHeader]byte
	filled int // of header
	left   int // what remains of the record
	count  atomic.Int64
	base   int64 // count when net/http's buffer was empty
}

const recordHeader = 5

// pass notes that p has passed.
func (r *records) pass(p []byte) {
	for len(p) > 0 {
		n := min(r.left, len(p))
		r.left -= n
		p = p[n:]
		n = copy(r.header[r.filled:], p)
		p = p[n:]
		if r.filled += n; r.filled == recordHeader {
			r.filled, r.left = 0, int(r.header[3])<<8|int(r.header[4])
			r.count.Add(1)
		}
	}
}

// overhead is what each record has beside the client's bytes, at least: its
// header, a nonce and a tag, and from TLS 1.3 on the type.
func overhead(state tls.ConnectionState) int64 {
	const tag, nonce, kind = 16, 8, 1
	switch {
	case state.Version >= tls.VersionTLS13:
		return recordHeader + tag + kind
	case strings.Contains(tls.CipherSuiteName(state.CipherSuite), "_GCM_"):
		return recordHeader + nonce + tag
	}
	return recordHeader + tag
}

// awaits is called before each Read between two requests.
func (c *conn) awaits(size int) {
	t := &c.tally
	switch st := c.flags.Load(); {
	case shaking(st):
		t.base = math.MaxInt64 // no telling how much is handshake: take it all for that
	case st&encrypted != 0 && !c.ahead():
		t.base = t.got.Load()
		t.records.base = t.records.count.Load()
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
	got := t.got.Load() - t.base
	if tc, ok := c.face.(*tls.Conn); ok && t.records != nil {
		got -= (t.records.count.Load() - t.records.base) * overhead(tc.ConnectionState())
	}
	return got-t.used >= smallestRequest
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
