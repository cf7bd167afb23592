package httpgrace

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// A protocol is how a client of Go's talks to a rig.
type protocol struct {
	name, proto    string
	tls            bool
	http1, h2, h2c bool
}

var protocols = []protocol{
	{name: "HTTP/1.1", proto: "HTTP/1.1", http1: true},
	{name: "HTTP/1.1 over TLS", proto: "HTTP/1.1", tls: true, http1: true},
	{name: "h2", proto: "HTTP/2.0", tls: true, http1: true, h2: true},
	{name: "h2c", proto: "HTTP/2.0", http1: true, h2c: true},
}

// spoken is what the server speaks.
func (p protocol) spoken() *http.Protocols {
	ps := new(http.Protocols)
	ps.SetHTTP1(p.http1)
	ps.SetHTTP2(p.h2)
	ps.SetUnencryptedHTTP2(p.h2c)
	return ps
}

func (r *rig) url() string {
	if r.tls != nil {
		return "https://" + r.addr + "/"
	}
	return "http://" + r.addr + "/"
}

func (r *rig) httpClient(p protocol) *http.Client {
	ps := p.spoken()
	if p.h2 || p.h2c {
		ps.SetHTTP1(false)
	}
	tr := &http.Transport{Protocols: ps, TLSClientConfig: r.tls}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func TestHTTP2StreamsInFlightComplete(t *testing.T) {
	t.Parallel()
	for _, p := range protocols[2:] {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			const streams = 10
			started := make(chan struct{}, streams)
			release := make(chan struct{})
			r := startRig(t, rigOptions{
				kind: graceKind, tls: p.tls,
				handler: func(w http.ResponseWriter, r *http.Request) {
					started <- struct{}{}
					<-release
					hello(w, r)
				},
				edit: func(hs *http.Server) { hs.Protocols = p.spoken() },
			})
			hc := r.httpClient(p)
			var wg sync.WaitGroup
			for range streams {
				wg.Go(func() {
					resp, err := hc.Post(r.url(), "text/plain", strings.NewReader("body"))
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "hello / body" {
						t.Errorf("%q, %v", b, err)
					}
				})
			}
			for range streams {
				<-started
			}
			r.shutdown(20 * time.Second)
			if st := r.grace().Stats(); st.Active == 0 {
				t.Errorf("%+v", st)
			}
			close(release)
			wg.Wait()
			r.drained()
			if st := r.grace().Stats(); st != (Stats{}) {
				t.Errorf("%+v", st)
			}
		})
	}
}

// The drain does not wait for idle HTTP/2 connections: they are told.
func TestHTTP2IdleConnectionIsToldToGo(t *testing.T) {
	t.Parallel()
	for _, p := range protocols[2:] {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			r := startRig(t, rigOptions{kind: graceKind, tls: p.tls, edit: func(hs *http.Server) { hs.Protocols = p.spoken() }})
			resp, err := r.httpClient(p).Get(r.url())
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			start := time.Now()
			r.shutdown(20 * time.Second)
			r.drained()
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

// An HTTP/2 connection that was made but not used yet gets its first request in.
func TestHTTP2ConnectionThatHasJustArrivedIsServed(t *testing.T) {
	t.Parallel()
	for _, p := range protocols[2:] {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			r := startRig(t, rigOptions{kind: graceKind, tls: p.tls, edit: func(hs *http.Server) { hs.Protocols = p.spoken() }})
			c := r.dialHTTP2()
			c.send(clientPreface + emptySettings)
			r.waitState(http.StateIdle)
			r.shutdown(20 * time.Second)
			c.send(headersFrame(1))
			got := c.frames()
			for _, want := range []string{"HEADERS 1", "DATA 1", "GOAWAY 1"} {
				if !strings.Contains(got, want) {
					t.Errorf("%q lacks %q", got, want)
				}
			}
			c.nc.Close()
			r.drained()
		})
	}
}

const emptySettings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// headersFrame is a whole GET of "/" on a stream.
func headersFrame(stream byte) string {
	return "\x00\x00\x06\x01\x05\x00\x00\x00" + string([]byte{stream}) + "\x82\x86\x84\x41\x01x"
}

// dialHTTP2 returns a client that writes and reads frames as they are.
func (r *rig) dialHTTP2() *client {
	if r.tls != nil {
		r.tls = r.tls.Clone()
		r.tls.NextProtos = []string{"h2"}
	}
	return r.dial()
}

// frames reads until the server closes, and returns the frames that matter.
func (c *client) frames() string {
	var all []string
	for {
		var h [frameHeaderSize]byte
		if _, err := io.ReadFull(c.br, h[:]); err != nil {
			return strings.Join(all, " ")
		}
		payload := make([]byte, int(h[0])<<16|int(h[1])<<8|int(h[2]))
		if _, err := io.ReadFull(c.br, payload); err != nil {
			return strings.Join(append(all, err.Error()), " ")
		}
		stream := binary.BigEndian.Uint32(h[5:])
		switch h[3] {
		case 0:
			all = append(all, fmt.Sprintf("DATA %d", stream))
		case frameHeaders:
			all = append(all, fmt.Sprintf("HEADERS %d", stream))
		case 3:
			all = append(all, fmt.Sprintf("RST_STREAM %d", stream))
		case frameGoAway:
			all = append(all, fmt.Sprintf("GOAWAY %d", binary.BigEndian.Uint32(payload)))
		}
	}
}

// One that completes its handshake when everybody else has been told is told too,
// also if it asks for nothing.
func TestHTTP2HandshakeDuringTheDrain(t *testing.T) {
	t.Parallel()
	for _, asks := range []bool{true, false} {
		t.Run(fmt.Sprintf("asks %v", asks), func(t *testing.T) {
			t.Parallel()
			r := startRig(t, rigOptions{kind: graceKind, tls: true})
			nc := r.dialRaw()
			r.waitState(http.StateNew)
			start := time.Now()
			r.shutdown(20 * time.Second)
			r.tls.NextProtos = []string{"h2"}
			c := newClient(t, tls.Client(nc, r.tls))
			c.send(clientPreface + emptySettings)
			if asks {
				c.send(headersFrame(1))
			}
			got := c.frames()
			if asks != strings.Contains(got, "DATA 1") || !strings.Contains(got, "GOAWAY") {
				t.Error(got)
			}
			c.nc.Close()
			r.drained()
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestHTTP2ConnectionThatSaysNothingIsClosedAtTheLastCall(t *testing.T) {
	r := startRig(t, rigOptions{kind: graceKind, tls: true})
	r.tls.NextProtos = []string{"h2"}
	c := r.dial()
	r.shutdown(20 * time.Second)
	r.grace().dismissIdle()
	if _, err := io.Copy(io.Discard, c.br); err != nil {
		t.Error(err)
	}
	c.nc.Close()
	r.drained()
}

// RFC 9113 §9.2.2 forbids most of TLS 1.2's cipher suites.
func TestHTTP2OverAWeakCipherIsRefused(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			weak := tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA
			r := startRig(t, rigOptions{kind: k, tls: true, edit: func(hs *http.Server) {
				hs.TLSConfig.CipherSuites = []uint16{weak, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
			}})
			r.tls.NextProtos, r.tls.MaxVersion, r.tls.CipherSuites = []string{"h2"}, tls.VersionTLS12, []uint16{weak}
			c := r.dial()
			c.send(clientPreface)
			got, _ := io.ReadAll(c.br)
			// net/http adds some words of debugging.
			want := string(goAwayFrame(0, inadequateSecurity))
			if len(got) < len(want) || string(got[3:17]) != want[3:] {
				t.Errorf("got %x, want %x", got, want)
			}
		})
	}
}

func TestWhichProtocolsAreSpoken(t *testing.T) {
	protocolsOf := func(http1, h2, h2c bool) *http.Protocols { return protocol{http1: http1, h2: h2, h2c: h2c}.spoken() }
	offered := []protocol{
		{name: "HTTP/1.1", http1: true},
		{name: "h2c", h2c: true},
		{name: "HTTP/1.1 over TLS", tls: true, http1: true},
		{name: "h2", tls: true, h2: true},
	}
	for _, test := range []struct {
		name string
		edit func(*http.Server)
	}{
		{"default", func(*http.Server) {}},
		{"all", func(hs *http.Server) { hs.Protocols = protocolsOf(true, true, true) }},
		{"HTTP/1", func(hs *http.Server) { hs.Protocols = protocolsOf(true, false, false) }},
		{"h2", func(hs *http.Server) { hs.Protocols = protocolsOf(false, true, false) }},
		{"h2c", func(hs *http.Server) { hs.Protocols = protocolsOf(false, false, true) }},
		{"h2 and h2c", func(hs *http.Server) { hs.Protocols = protocolsOf(false, true, true) }},
		{"HTTP/1 and h2c", func(hs *http.Server) { hs.Protocols = protocolsOf(true, false, true) }},
		{"empty TLSNextProto", func(hs *http.Server) {
			hs.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got [2]string
			for i, k := range kinds {
				for _, p := range offered {
					r := startRig(t, rigOptions{kind: k, tls: p.tls, edit: test.edit})
					resp, err := r.httpClient(p).Get(r.url())
					if err != nil {
						got[i] += p.name + ": no\n"
						continue
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					got[i] += fmt.Sprintf("%s: %s\n", p.name, resp.Proto)
				}
			}
			if got[0] != got[1] {
				t.Errorf("net/http:\n%s\nhttpgrace:\n%s", got[0], got[1])
			}
		})
	}
}

// Nothing is known of what was read ahead there. A client that does not pipeline,
// as most do not, is told to go all the same; one that does knows by RFC 9112 §9.6
// that what it has sent behind was not looked at.
func TestListenerWithTLSInsideAnnouncesTheClose(t *testing.T) {
	cert, pool := testCertificate()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &Server{Server: &http.Server{Handler: http.HandlerFunc(hello)}}
	served := serving(srv, tls.NewListener(inner, tlsConfig(cert)))
	nc, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, tlsClient(nc, pool))
	c.ask(get("/"))
	done := make(chan error, 1)
	go func() { done <- srv.Shutdown(t.Context()) }()
	<-srv.began
	if _, closes := c.ask(get("/")); !closes {
		t.Error("it is not announced")
	}
	c.nc.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	<-served
}

// A listener that has TLS inside gives connections that cannot be wrapped. They
// are drained all the same.
func TestListenerWithTLSInside(t *testing.T) {
	for _, p := range protocols[1:3] {
		t.Run(p.name, func(t *testing.T) {
			cert, pool := testCertificate()
			inner, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ln := tls.NewListener(inner, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}})
			idle := make(chan struct{}, 10)
			srv := &Server{Server: &http.Server{Handler: http.HandlerFunc(hello), ConnState: func(_ net.Conn, st http.ConnState) {
				if st == http.StateIdle {
					idle <- struct{}{}
				}
			}}}
			served := serving(srv, ln)
			r := &rig{t: t, addr: ln.Addr().String(), tls: &tls.Config{RootCAs: pool, ServerName: "localhost"}}
			hc := r.httpClient(p)
			resp, err := hc.Get(r.url())
			if err != nil {
				t.Fatal(err)
			}
			if resp.Proto != p.proto {
				t.Errorf("spoke %s", resp.Proto)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			<-idle
			done := make(chan error, 1)
			go func() { done <- srv.Shutdown(t.Context()) }()
			<-srv.began
			srv.dismissIdle()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if err := <-served; !errors.Is(err, http.ErrServerClosed) {
				t.Error(err)
			}
			if st := srv.Stats(); st != (Stats{}) {
				t.Errorf("%+v", st)
			}
		})
	}
}
