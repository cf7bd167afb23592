//go:build unix

package upgradertest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestLoadHTTPAsksAsItIsTold(t *testing.T) {
	t.Parallel()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got := strings.Join([]string{r.Proto, r.Method, r.RequestURI, r.Header.Get("X-Test"), string(body)}, " ")
		w.WriteHeader(http.StatusTeapot)
		if want := r.Header.Get("X-Want"); got != want {
			t.Errorf("request %q, want %q", got, want)
		}
	})
	ask := func(want string, o HTTP) HTTP {
		o.Clients, o.Status, o.Method, o.Body = 2, http.StatusTeapot, http.MethodPost, "body"
		o.Header = http.Header{"X-Test": {"test"}, "X-Want": {want}}
		return o
	}
	const http1, http2 = "HTTP/1.1 POST /path?query test body", "HTTP/2.0 POST /path?query test body"

	plain := httptest.NewUnstartedServer(handler)
	plain.Config.Protocols = new(http.Protocols)
	plain.Config.Protocols.SetHTTP1(true)
	plain.Config.Protocols.SetUnencryptedHTTP2(true)
	plain.Start()
	t.Cleanup(plain.Close)

	secure := httptest.NewUnstartedServer(handler)
	secure.EnableHTTP2 = true
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	trusted := x509.NewCertPool()
	trusted.AddCert(secure.Certificate())

	socket := SocketPath(t)
	local := httptest.NewUnstartedServer(handler)
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	_ = local.Listener.Close()
	local.Listener = ln
	local.Start()
	t.Cleanup(local.Close)

	for name, tt := range map[string]struct {
		url string
		o   HTTP
	}{
		"plain":        {plain.URL, ask(http1, HTTP{})},
		"h2c":          {plain.URL, ask(http2, HTTP{HTTP2: true})},
		"TLS":          {secure.URL, ask(http1, HTTP{})},
		"trusted":      {secure.URL, ask(http1, HTTP{TLS: &tls.Config{RootCAs: trusted}})},
		"h2 over TLS":  {secure.URL, ask(http2, HTTP{HTTP2: true})},
		"unix":         {"http://any", ask(http1, HTTP{Socket: socket})},
		"a port of 80": {"http://any:80", ask(http1, HTTP{Socket: socket})},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := LoadHTTP(t, tt.url+"/path?query", tt.o)
			l.Wait(10)
			l.Stop().MustBeClean(t)
		})
	}
	t.Run("not trusted", func(t *testing.T) {
		t.Parallel()
		l := LoadHTTP(t, secure.URL, HTTP{TLS: &tls.Config{}})
		waitFor(t, func() bool { return l.sofar().Failures["tls"] > 0 })
		if r := l.Stop(); r.Failed != r.Requests {
			t.Errorf("some were answered: %s", r)
		}
	})
}

func TestHalfOfTheClientsKeepTheirConnection(t *testing.T) {
	t.Parallel()
	var connections atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	one := LoadHTTP(t, server.URL, HTTP{Clients: 1})
	one.Wait(20)
	one.Stop().MustBeClean(t)
	if n := connections.Swap(0); n != 1 {
		t.Errorf("the first client had %d connections, want 1", n)
	}
	two := LoadHTTP(t, server.URL, HTTP{Clients: 2})
	two.Wait(20)
	if r, n := two.Stop(), connections.Load(); n < 2 || n > int64(r.Requests) {
		t.Errorf("%d connections for %d requests of two clients", n, r.Requests)
	}
}

// scripted is a client whose requests end as the list says, again and again.
type scripted struct {
	ends   []error
	n      int
	closed *atomic.Int64
}

func (c *scripted) Ask(context.Context) error {
	c.n++
	return c.ends[(c.n-1)%len(c.ends)]
}

func (c *scripted) Close() { c.closed.Add(1) }

func TestOwnClientsAreCountedByKind(t *testing.T) {
	t.Parallel()
	var closed atomic.Int64
	l := StartLoad(t, 3, func(int) Client {
		return &scripted{ends: []error{nil, io.EOF, syscall.ECONNREFUSED, errors.New("nonsense")}, closed: &closed}
	})
	l.Wait(10)
	r := l.Stop()
	if n := closed.Load(); n != 3 {
		t.Errorf("%d clients were closed, want 3", n)
	}
	for _, kind := range []string{"eof", "refused", "other"} {
		if n := r.Failures[kind]; n == 0 || n > r.Failed/2 {
			t.Errorf("%d of kind %s of %d", n, kind, r.Failed)
		}
	}
	if sum := r.Failures["eof"] + r.Failures["refused"] + r.Failures["other"]; sum != r.Failed || r.Failed >= r.Requests {
		t.Errorf("%d by kind, %d failed of %d", sum, r.Failed, r.Requests)
	}
	if len(r.Examples) == 0 || len(r.Examples) > examples {
		t.Errorf("%d examples", len(r.Examples))
	}
	if again := l.Stop(); again.Requests != r.Requests {
		t.Errorf("%d requests, and then %d: it goes on", r.Requests, again.Requests)
	}
}

func TestLoadWithoutAnswersIsReported(t *testing.T) {
	t.Parallel()
	wantComplaint(t, complaints(t, func(tb testing.TB) { Report{}.MustBeClean(tb) }), "no request was made")
	said := complaints(t, func(tb testing.TB) {
		l := StartLoad(tb, 1, func(int) Client { return &scripted{ends: []error{io.EOF}, closed: new(atomic.Int64)} })
		waitFor(tb, func() bool { return l.sofar().Failed > 0 })
		l.limit = 200 * time.Millisecond
		l.Wait(5)
	})
	wantComplaint(t, said, "0 of 5 requests were answered within 200ms", " eof")
}

// hanging is a client whose requests have no end of their own.
type hanging struct{ begun chan struct{} }

func (c hanging) Ask(ctx context.Context) error {
	close(c.begun)
	<-ctx.Done()
	return ctx.Err()
}

func (c hanging) Close() {}

func TestRequestThatDoesNotEndIsReported(t *testing.T) {
	t.Parallel()
	var r Report
	said := complaints(t, func(tb testing.TB) {
		c := hanging{make(chan struct{})}
		l := StartLoad(tb, 1, func(int) Client { return c })
		<-c.begun
		l.limit = 50 * time.Millisecond
		r = l.Stop()
	})
	wantComplaint(t, said, "a request has taken more than 50ms: it is not counted")
	if r.Requests != 0 {
		t.Errorf("it is counted: %s", r)
	}
}
