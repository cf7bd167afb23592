package load

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// h2 carries requests by HTTP/2, several at once on one connection.
type h2 struct {
	*client
	// turnstile has one place: who takes it may use conn, and dial.
	turnstile chan struct{}
	conn      *h2conn // nil: none
	keep      int     // how much of a body is kept; zero: all
}

func newH2(c *client) *h2 { return &h2{client: c, turnstile: make(chan struct{}, 1)} }

func (h *h2) idle(starting context.Context, d time.Duration) { rest(starting, d) }

func (h *h2) close() {
	if h.conn != nil {
		h.conn.close()
		h.conn = nil
	}
}

func (h *h2) turn(ctx context.Context, n, _ int) {
	r := h.form(n)
	start := time.Now()
	h.record(ctx, start, r.hold, h.send(ctx, r))
}

// h2request is a request and what its response must be.
type h2request struct {
	header []byte
	body   string
	hold   time.Duration
	check  func(io.Reader) error
}

// form returns the n-th request: GET and POST, some larger than any window, and
// some that are under way when others come and go.
func (h *h2) form(n int) h2request {
	hold := h.load.cfg.Hold
	body := payload(h.id, n)
	switch {
	case n%64 == 0:
		body = strings.Repeat(body, 1+2*defaultWindow/len(body))
	case n%8 == 1:
		return h2request{header: h.header("GET", fmt.Sprintf("/slow?ms=%d", hold.Milliseconds()), 0), hold: hold, check: exactly(slowBody(hold))}
	case n%2 == 0:
		return h2request{header: h.header("GET", "/", 0), check: h.load.identity}
	}
	return h2request{header: h.header("POST", "/echo", len(body)), body: body, check: exactly(body)}
}

func (h *h2) header(method, path string, length int) []byte {
	b := appendField(nil, ":method", method)
	b = appendField(b, ":scheme", h.load.target.scheme())
	b = appendField(b, ":authority", h.load.target.host)
	b = appendField(b, ":path", path)
	if method == http.MethodPost {
		b = appendField(b, "content-length", strconv.Itoa(length))
	}
	return b
}

func (h *h2) send(ctx context.Context, r h2request) error {
	limit := h.load.cfg.Timeout + r.hold
	conn, s, err := h.open(ctx, limit, r.header, r.body == "")
	if err != nil {
		return err
	}
	return exchange(conn, limit, s, r)
}

func exchange(conn *h2conn, limit time.Duration, s *h2stream, r h2request) error {
	if err := await(conn, limit, s, r.body); err != nil {
		return err
	}
	if s.status != http.StatusOK {
		return statusError(s.status)
	}
	return r.check(bytes.NewReader(s.body.Bytes()))
}

// open opens one stream, on the connection that is there or on a new one.
func (h *h2) open(ctx context.Context, limit time.Duration, header []byte, last bool) (*h2conn, *h2stream, error) {
	for begun := time.Now(); ; {
		conn, err := h.connected(ctx)
		if err != nil {
			return nil, nil, err
		}
		if s := conn.open(limit, header, last); s != nil {
			return conn, s, nil
		}
		// A GOAWAY has come, and nothing was sent: this is no second attempt.
		if time.Since(begun) > limit {
			return nil, nil, &rejectedError{fmt.Errorf("%v of connections that end before their first stream", limit)}
		}
	}
}

// await sends the body of a request, and returns when its stream has ended.
func await(conn *h2conn, limit time.Duration, s *h2stream, body string) error {
	limited := time.AfterFunc(limit, func() { conn.expire(limit, s) })
	defer limited.Stop()
	conn.send(limit, s, body)
	<-s.done
	return s.err
}

// connected returns a connection on which a stream may be opened.
func (h *h2) connected(ctx context.Context) (*h2conn, error) {
	h.turnstile <- struct{}{}
	defer func() { <-h.turnstile }()
	if h.conn != nil && h.conn.usable() {
		return h.conn, nil
	}
	if h.conn != nil && h.conn.wasLeft() {
		h.count(&h.closed, 1)
	}
	h.conn = nil // its streams end it
	h.count(&h.dials, 1)
	limit := h.load.cfg.Timeout
	nc, unwatch, err := h.load.target.connect(ctx, limit, h.alpn())
	if err != nil {
		return nil, err
	}
	h.conn = newH2Conn(nc, unwatch, limit)
	h.conn.keep = h.keep
	return h.conn, nil
}

// alpn names the protocol where a handshake agrees on one.
func (h *h2) alpn() string {
	if h.load.target.tls == nil {
		return ""
	}
	return "h2"
}
