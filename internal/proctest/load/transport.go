package load

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"
)

// transport carries requests by net/http's own client, as most Go programs do.
// Of HTTP/1 it makes nothing but POSTs whose body cannot be rewound, which are
// never sent again. Over HTTP/2 every second request is a GET; what the
// Transport sends again by itself, because the server refused the stream, is
// counted as told.
type transport struct {
	*client
	http *http.Transport
}

func newTransport(c *client) *transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(c.kind == Transport)
	protocols.SetHTTP2(c.kind == H2Transport)
	protocols.SetUnencryptedHTTP2(c.kind == H2Transport)
	target := c.load.target
	return &transport{c, &http.Transport{
		Protocols:       protocols,
		TLSClientConfig: target.tls.Clone(), // nil's clone is nil
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c.count(&c.dials, 1)
			return target.dial(ctx)
		},
	}}
}

func (t *transport) idle(starting context.Context, d time.Duration) { rest(starting, d) }

func (t *transport) close() { t.http.CloseIdleConnections() }

func (t *transport) turn(ctx context.Context, n, _ int) {
	start := time.Now()
	t.record(ctx, start, 0, t.send(ctx, n))
}

func (t *transport) send(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, t.load.cfg.Timeout)
	defer cancel()
	var wrote, answered atomic.Int32
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaders:         func() { wrote.Add(1) },
		GotFirstResponseByte: func() { answered.Add(1) },
	})
	req, check, err := t.build(ctx, n)
	if err != nil {
		return err
	}
	// Not by a Client, which follows redirects.
	resp, err := t.http.RoundTrip(req)
	t.count(&t.told, int(max(0, wrote.Load()-1)))
	if err != nil {
		return explain(err, wrote.Load() > 0, answered.Load() > 0)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return statusError(resp.StatusCode)
	}
	if err := check(resp.Body); err != nil {
		return &phaseError{phase: "read", answered: true, err: err}
	}
	return nil
}

func (t *transport) build(ctx context.Context, n int) (*http.Request, func(io.Reader) error, error) {
	url := fmt.Sprintf("%s://%s", t.load.target.scheme(), t.load.target.host)
	if t.kind == H2Transport && n%2 == 0 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/", nil)
		return req, t.load.identity, err
	}
	body := payload(t.id, n)
	// NewRequest knows how to rewind a strings.Reader, but not this.
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/echo", io.NopCloser(strings.NewReader(body)))
	if err == nil {
		req.ContentLength = int64(len(body))
	}
	return req, exactly(body), err
}

// explain turns the Transport's errors, most of which are mere text, into ours.
func explain(err error, wrote, answered bool) error {
	says := func(texts ...string) bool {
		for _, text := range texts {
			if strings.Contains(err.Error(), text) {
				return true
			}
		}
		return false
	}
	switch {
	case !wrote && says("cannot rewind body after connection loss", "client conn not usable", "client conn is closed"):
		return &ownError{err}
	case says("GOAWAY and closed the connection", "client connection lost", "server closed idle connection"):
		return &phaseError{phase: "read", answered: answered, err: fmt.Errorf("%w: %w", io.EOF, err)}
	case says("GOAWAY", "REFUSED_STREAM"):
		return &rejectedError{err}
	}
	return &phaseError{phase: "round trip", answered: answered, err: err}
}
