package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
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

func (t target) scheme() string {
	if t.tls != nil {
		return "https"
	}
	return "http"
}

// dial connects once, without TLS.
func (t target) dial(ctx context.Context) (net.Conn, error) {
	nc, err := new(net.Dialer).DialContext(ctx, t.network, t.address)
	if err != nil {
		return nil, &phaseError{phase: "dial", err: err}
	}
	return nc, nil
}

// connect is dial, and the handshake if there is TLS. A protocol is what ALPN
// must agree on; none: HTTP/1, which needs no ALPN. When ctx is done the
// connection's pending and future calls fail, until unwatch is called: the
// caller asks ctx before it blames the server.
func (t target) connect(ctx context.Context, limit time.Duration, protocol string) (nc net.Conn, unwatch func() bool, err error) {
	dialing, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	raw, err := t.dial(dialing)
	if err != nil {
		return nil, nil, err
	}
	nc = raw
	if t.tls != nil {
		nc, err = t.secure(dialing, raw, protocol)
		if err != nil {
			return nil, nil, &phaseError{phase: "handshake", err: errors.Join(err, raw.Close())}
		}
	}
	// A close, not a deadline: the next request would set that anew.
	return nc, context.AfterFunc(ctx, func() { _ = raw.Close() }), nil
}

func (t target) secure(ctx context.Context, raw net.Conn, protocol string) (net.Conn, error) {
	cfg := t.tls.Clone()
	if protocol != "" {
		cfg.NextProtos = []string{protocol}
	}
	c := tls.Client(raw, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if got := c.ConnectionState().NegotiatedProtocol; got != protocol {
		return nil, fmt.Errorf("ALPN: protocol %q, want %q", got, protocol)
	}
	return c, nil
}
