package load

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// conn is one HTTP/1 connection and the responses that arrive on it. It belongs
// to one client.
type conn struct {
	net.Conn
	responses *bufio.Reader
	got       int   // bytes of the current response
	broken    error // why there are no more
	unwatch   func() bool
}

func newConn(nc net.Conn, unwatch func() bool) *conn {
	c := &conn{Conn: nc, unwatch: unwatch}
	c.responses = bufio.NewReader(c)
	return c
}

// close ends the connection. An error of a connection that is given up says
// nothing about the requests on it.
func (c *conn) close() {
	c.unwatch()
	_ = c.Close()
}

// Read counts what arrives: a response that ends before its first byte is
// another failure than one that is truncated.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.got += n
	c.broken = err
	return n, err
}

// exchange writes one request and reads its response, within limit. It reports
// whether another request may follow on this connection.
func (c *conn) exchange(r request, limit time.Duration) (keep bool, err error) {
	if err := c.begin(limit); err != nil {
		return false, err
	}
	if err := c.write(r.text, r.pieces, r.hold); err != nil {
		return false, &phaseError{phase: "write", err: err}
	}
	if r.rest != "" {
		if err := c.continues(); err != nil {
			return false, c.failed(err)
		}
		if err := c.write(r.rest, 0, 0); err != nil {
			return false, &phaseError{phase: "write", err: err}
		}
	}
	return c.receive(r)
}

// begin is called before a request is written, which must have been answered
// within limit.
func (c *conn) begin(limit time.Duration) error {
	// Nobody may speak before he is asked: these bytes would be taken for
	// the response.
	if n := c.responses.Buffered(); n > 0 {
		return bodyError(fmt.Sprintf("%d bytes before the request", n))
	}
	return c.expect(limit)
}

// expect is begin where the server may have said something already.
func (c *conn) expect(limit time.Duration) error {
	c.got, c.broken = 0, nil
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return &phaseError{phase: "write", err: err}
	}
	return nil
}

// write sends text at once, or in so many pieces that are spread over d.
func (c *conn) write(text string, pieces int, d time.Duration) error {
	begun := time.Now()
	for i := range pieces {
		from, to := len(text)*i/pieces, len(text)*(i+1)/pieces
		if _, err := io.WriteString(c.Conn, text[from:to]); err != nil {
			return err
		}
		time.Sleep(time.Until(begun.Add(d * time.Duration(i+1) / time.Duration(pieces))))
	}
	if pieces > 0 {
		return nil
	}
	_, err := io.WriteString(c.Conn, text)
	return err
}

// continues waits for 100 Continue.
func (c *conn) continues() error {
	resp, err := http.ReadResponse(c.responses, nil)
	if err != nil {
		return err
	}
	_ = resp.Body.Close() // empty, or the answer is not wanted
	if resp.StatusCode != http.StatusContinue {
		return statusError(resp.StatusCode)
	}
	c.got = 0
	return nil
}

// receive reads one response.
func (c *conn) receive(r request) (keep bool, err error) {
	resp, err := http.ReadResponse(c.responses, &http.Request{Method: r.method})
	if err != nil {
		return false, c.failed(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != cmp.Or(r.status, http.StatusOK) {
		return false, c.failed(statusError(resp.StatusCode))
	}
	err = r.check(resp.Body)
	if err == nil && r.also != nil {
		err = r.also(resp.Header, resp.Trailer)
	}
	return !resp.Close, c.failed(err)
}

// failed says more about an error of reading.
func (c *conn) failed(err error) error {
	if err == nil {
		return nil
	}
	var (
		status statusError
		body   bodyError
	)
	if !errors.As(err, &status) && !errors.As(err, &body) {
		// Half a header line is malformed too; what counts is why it is half.
		err = cmp.Or(c.broken, err)
	}
	return &phaseError{phase: "read", answered: c.got > 0, err: err}
}

// idle waits for d, and listens meanwhile, as a browser does. It reports
// false if the server has closed the connection, which it may between two
// requests. It returns early when ctx is done.
func (c *conn) idle(ctx context.Context, d time.Duration) (alive bool) {
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		return false
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })()
	_, err := c.responses.Peek(1)
	var limit net.Error
	return err == nil || errors.As(err, &limit) && limit.Timeout()
}
