package httpgrace

import (
	"math"
	"net/http"
)

const (
	// smallestRequest is the length of "GET / HTTP/1.0" and an empty line.
	smallestRequest = 18

	// recordOverhead is what a TLS record adds to a request, at most.
	recordOverhead = 29
)

// begin counts from here on what is read, if net/http begins to fill an empty
// buffer.
func (c *conn) begin(size int) {
	switch st := c.flags.Load(); {
	case st&quiet == 0:
	case shaking(st):
		c.got.Store(math.MinInt32) // no telling what is handshake
		c.used = 0
	case st&encrypted != 0:
		c.got.Store(-recordOverhead)
		c.used = 0
	case size == c.largest:
		c.got.Store(0)
		c.used = 0
	}
}

// behind reports whether another whole request has been read behind r. It is
// told by the number of bytes, as net/http does not show its buffer, and may
// err if r is written in an unusual way: to announce the close too early makes
// the client send the other again; too late, is no harm.
func (c *conn) behind(r *http.Request) bool {
	c.used += requestSize(r)
	return c.got.Load()-c.used >= smallestRequest
}

// requestSize returns how long r was when it was sent, if it was written as
// most do. A chunked body is taken for endless.
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
