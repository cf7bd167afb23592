package load

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// target is where the clients connect to.
type target struct {
	network, address string
	host             string      // for the Host header
	tls              *tls.Config // nil: in the clear
}

func parseTarget(s string) (target, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok && path != "" {
		return target{network: "unix", address: path, host: "localhost"}, nil
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return target{}, err
	case u.Port() == "":
		return target{}, fmt.Errorf("target %q: want http://HOST:PORT, https://HOST:PORT or unix:PATH", s)
	case u.Scheme == "http":
		return target{network: "tcp", address: u.Host, host: u.Host}, nil
	case u.Scheme == "https":
		// The servers under test make their own certificate in each process.
		insecure := &tls.Config{ServerName: u.Hostname(), InsecureSkipVerify: true}
		return target{network: "tcp", address: u.Host, host: u.Host, tls: insecure}, nil
	}
	return target{}, fmt.Errorf("target %q: scheme %q: want http, https or unix", s, u.Scheme)
}

// conn is one connection and the responses that arrive on it. It belongs to
// one client.
type conn struct {
	net.Conn
	responses *bufio.Reader
	got       int   // bytes of the current response
	broken    error // why there are no more
	unwatch   func() bool
}

// dial connects once. When ctx is done the connection's pending and future
// calls fail: the caller asks ctx before it blames the server.
func (t target) dial(ctx context.Context, limit time.Duration) (*conn, error) {
	dialing, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(dialing, t.network, t.address)
	if err != nil {
		return nil, &phaseError{phase: "dial", err: err}
	}
	if t.tls != nil {
		secure := tls.Client(nc, t.tls)
		if err := secure.HandshakeContext(dialing); err != nil {
			return nil, &phaseError{phase: "handshake", err: errors.Join(err, nc.Close())}
		}
		nc = secure
	}
	c := &conn{Conn: nc}
	c.responses = bufio.NewReader(c)
	// A close, not a deadline: the next request would set that anew.
	c.unwatch = context.AfterFunc(ctx, func() { _ = nc.Close() })
	return c, nil
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
	// Nobody may speak before he is asked: these bytes would be taken for
	// the response.
	if n := c.responses.Buffered(); n > 0 {
		return false, bodyError(fmt.Sprintf("%d bytes before the request", n))
	}
	c.got, c.broken = 0, nil
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return false, &phaseError{phase: "write", err: err}
	}
	if _, err := io.WriteString(c.Conn, r.text); err != nil {
		return false, &phaseError{phase: "write", err: err}
	}
	keep, err = c.receive(r)
	if err != nil {
		return false, &phaseError{phase: "read", answered: c.got > 0, err: err}
	}
	return keep, nil
}

func (c *conn) receive(r request) (keep bool, err error) {
	resp, err := http.ReadResponse(c.responses, nil)
	if err != nil {
		// Half a header line is malformed too; what counts is why it is half.
		return false, cmp.Or(c.broken, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, statusError(resp.StatusCode)
	}
	return !resp.Close, r.check(resp.Body)
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
