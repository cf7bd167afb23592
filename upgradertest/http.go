package upgradertest

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest/load"
)

// HTTP says what clients ask, and how. The zero value is eight clients that GET
// and want status 200, every second of which has a new connection for each
// request.
type HTTP struct {
	Clients int           // 0: 8
	Method  string        // empty: GET
	Header  http.Header   // besides Host and Content-Length
	Body    string        // of each request
	Status  int           // any other one counts as a failure; 0: 200
	TLS     *tls.Config   // for https; nil: any certificate will do
	HTTP2   bool          // with http by prior knowledge
	Timeout time.Duration // the limit of each of: connecting, and a request; 0: 10 s

	// Socket is the path of a unix socket on which the server listens. The URL's
	// host is then but a name. Empty: TCP.
	Socket string
}

// LoadHTTP puts clients on a URL, http or https. They never retry, which
// net/http's own client does, so they see what it hides. They are attentive as
// browsers are: between two requests they notice that the server has closed the
// connection, and an answer with Connection: close, or a GOAWAY, is the last one
// on its connection. What is lost then was lost by the server.
func LoadHTTP(tb testing.TB, target string, o HTTP) *Load {
	tb.Helper()
	u, err := url.Parse(target)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		tb.Fatalf("upgradertest: load: %q is not a URL of http or https with a host", target)
	}
	return StartLoad(tb, cmp.Or(o.Clients, 8), func(i int) Client {
		p := o.peer(u)
		p.Keep = i%2 == 0
		return &httpClient{asker: load.NewAsker(p), ask: o.ask(u), want: cmp.Or(o.Status, http.StatusOK)}
	})
}

func (o HTTP) peer(u *url.URL) load.Peer {
	p := load.Peer{Network: "tcp", Address: address(u), H2: o.HTTP2, Timeout: cmp.Or(o.Timeout, 10*time.Second)}
	if o.Socket != "" {
		p.Network, p.Address = "unix", o.Socket
	}
	if u.Scheme == "https" {
		p.TLS = &tls.Config{InsecureSkipVerify: true}
		if o.TLS != nil {
			p.TLS = o.TLS.Clone()
		}
		p.TLS.ServerName = cmp.Or(p.TLS.ServerName, u.Hostname())
	}
	return p
}

func address(u *url.URL) string {
	return net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme]))
}

func (o HTTP) ask(u *url.URL) load.Ask {
	a := load.Ask{Method: cmp.Or(o.Method, http.MethodGet), Host: u.Host, Path: u.RequestURI(), Body: o.Body}
	for name, values := range o.Header {
		for _, value := range values {
			a.Fields = append(a.Fields, load.Field{Name: name, Value: value})
		}
	}
	return a
}

// httpClient is one of LoadHTTP.
type httpClient struct {
	asker *load.Asker
	ask   load.Ask
	want  int
}

func (c *httpClient) Ask(ctx context.Context) error {
	answer, err := c.asker.Ask(ctx, c.ask)
	if err != nil {
		return fmt.Errorf("%s %s: %w", c.ask.Method, c.ask.Path, err)
	}
	if answer.Status != c.want {
		return &statusError{answer.Status, c.want, answer.Start}
	}
	return nil
}

func (c *httpClient) idle(ctx context.Context, d time.Duration) { c.asker.Idle(ctx, d) }

func (c *httpClient) Close() { c.asker.Close() }

// statusError is an answer that is not the one that was wanted.
type statusError struct {
	got, want int
	body      string // the first bytes of it
}

func (e *statusError) Error() string {
	return fmt.Sprintf("status %d, want %d: %.80q", e.got, e.want, e.body)
}
