//go:build linux

package handover

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/go-handover/handover/internal/proctest"
)

// TestRealStreamsAreAnswered: every stream that h2load has opened is answered.
//
// h2load does not connect again after GOAWAY: it sends nothing more, counts all
// that it would have sent as failed, and ends. So there is one for each upgrade,
// and a relay says how many streams it has really opened. With a lone GOAWAY
// that is more than were answered: those that crossed it were refused.
func TestRealStreamsAreAnswered(t *testing.T) {
	path := installed(t, "h2load", "the Debian package nghttp2-client")
	for _, socket := range []string{"http-0", "tls"} {
		t.Run(socket, func(t *testing.T) {
			s := proctest.Start(t, proctest.Demo(t, "v1"), append(quick, "-listen", "127.0.0.1:0", "-tls", "127.0.0.1:0")...)
			var relays []*relay
			var clients []*program
			for range rounds() {
				r := newRelay(t, s.Addr(socket), socket == "tls")
				p := start(t, nil, path, "-c4", "-m8", fmt.Sprintf("-n%d", endless), r.url+"/")
				r.answers(t, p)
				s.Upgrade()
				relays, clients = append(relays, r), append(clients, p)
			}
			var opened, answered int
			for i, p := range clients {
				p.wait()
				n := succeeded(t, p.out.String())
				if n == endless {
					t.Errorf("h2load was done before the upgrade: the test showed nothing")
				}
				opened += int(relays[i].opened.Load())
				answered += n
			}
			if opened != answered {
				t.Errorf("%d of %d streams were not answered", opened-answered, opened)
			}
			t.Logf("%d streams opened, %d answered", opened, answered)
		})
	}
}

// endless is how many streams h2load cannot open in the time of an upgrade.
const endless = 500_000

// succeeded reads h2load's report.
func succeeded(t *testing.T, report string) (n int) {
	t.Helper()
	_, line, _ := strings.Cut(report, "\nstatus codes: ")
	if _, err := fmt.Sscanf(line, "%d 2xx", &n); err != nil {
		t.Fatalf("%v in the report of h2load:\n%s", err, report)
	}
	return n
}

// relay passes HTTP/2 on to a server, connection by connection, and counts.
type relay struct {
	url    string
	opened atomic.Int64  // streams, by the client
	first  chan struct{} // closed when one was answered

	once sync.Once
}

func newRelay(t *testing.T, server string, secure bool) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{url: "http://" + ln.Addr().String(), first: make(chan struct{})}
	dial := func() (net.Conn, error) { return net.Dial("tcp", server) }
	if secure {
		r.url = "https://" + ln.Addr().String()
		ln = tls.NewListener(ln, &tls.Config{Certificates: certificates(), NextProtos: []string{"h2"}})
		dial = func() (net.Conn, error) {
			return tls.Dial("tcp", server, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		}
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			go r.serve(client, dial)
		}
	}()
	return r
}

// certificates borrows those of package httptest.
func certificates() []tls.Certificate {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	return s.TLS.Certificates
}

// serve ends when both directions have.
func (r *relay) serve(client net.Conn, dial func() (net.Conn, error)) {
	defer client.Close()
	server, err := dial()
	if err != nil {
		return // the client's stream is not answered
	}
	defer server.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		pass(server, client, &frames{rest: len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), see: func(kind, _ byte) {
			if kind == frameHeaders {
				r.opened.Add(1)
			}
		}})
	}()
	pass(client, server, &frames{see: func(kind, flags byte) {
		if kind <= frameHeaders && flags&flagEndStream != 0 {
			r.once.Do(func() { close(r.first) })
		}
	}})
	<-ended
}

// pass ends one direction as its sender does. Frames are counted before they
// are passed on.
func pass(to, from net.Conn, f *frames) {
	_, _ = io.Copy(to, io.TeeReader(from, f)) // whatever is lost, the client counts
	_ = to.(interface{ CloseWrite() error }).CloseWrite()
}

// answers waits until a stream of the client was answered.
func (r *relay) answers(t *testing.T, p *program) {
	t.Helper()
	select {
	case <-r.first:
	case <-p.ended:
		t.Fatal("no stream was answered")
	}
}

// Of RFC 9113, section 6; DATA is 0.
const (
	frameHeaders  = 1
	flagEndStream = 1
)

// frames looks at the heads of the frames that are written to it.
type frames struct {
	rest int // of the payload, or of the preface
	head []byte
	see  func(kind, flags byte)
}

func (f *frames) Write(p []byte) (int, error) {
	const size = 9
	for rest := p; len(rest) > 0; {
		if f.rest > 0 {
			n := min(f.rest, len(rest))
			f.rest, rest = f.rest-n, rest[n:]
			continue
		}
		n := min(size-len(f.head), len(rest))
		f.head, rest = append(f.head, rest[:n]...), rest[n:]
		if h := f.head; len(h) == size {
			f.rest = int(h[0])<<16 | int(h[1])<<8 | int(h[2])
			f.head = h[:0]
			f.see(h[3], h[4])
		}
	}
	return len(p), nil
}
