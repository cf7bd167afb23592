package httpgrace

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// However a request is cut in two, if its first byte is there before the last
// call to idle connections, it is answered; otherwise the connection is closed
// with care.
func TestRequestSplitAtEveryByteIsAnswered(t *testing.T) {
	const next = "POST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok"
	for _, mode := range []struct {
		name      string
		tls       bool
		pipelined bool // the first part comes right behind the request before
		from      int  // under TLS, see atRest
	}{
		{name: "after the answer"},
		{name: "pipelined", pipelined: true},
		{name: "after the answer, TLS", tls: true},
		{name: "pipelined, TLS", tls: true, pipelined: true, from: 4},
	} {
		t.Run(mode.name, func(t *testing.T) {
			for k := range len(next) + 1 {
				if k == 0 || k >= mode.from {
					split(t, mode.tls, mode.pipelined, next[:k], next[k:])
				}
			}
		})
	}
}

func split(t *testing.T, tls, pipelined bool, first, rest string) {
	t.Helper()
	r := startRig(t, rigOptions{kind: graceKind, tls: tls, spy: true})
	defer r.srv.Close()
	fail := func(format string, args ...any) {
		t.Helper()
		t.Errorf("split at %q: %s", first, fmt.Sprintf(format, args...))
	}
	c := r.dial()
	if pipelined {
		c.send(get("/1") + first)
	} else {
		c.send(get("/1"))
	}
	if _, _, err := c.answer(); err != nil {
		fail("first answer: %v", err)
	}
	if !pipelined {
		r.forgetReads()
		c.send(first)
		if first != "" {
			<-r.read
		}
	}
	if rest == "" {
		if _, _, err := c.answer(); err != nil {
			fail("answer: %v", err)
		}
	}
	r.shutdown(20 * time.Second)
	r.forgetReads()
	r.grace().dismissIdle()

	if first != "" && rest != "" {
		<-r.started // the reader has looked, and reads on
		c.send(rest)
		body, _, err := c.answer()
		if err != nil || body != "hello /2 ok" {
			fail("answer %q, %v", body, err)
		}
	}
	if err := c.ends(); err != nil {
		fail("end: %v", err)
	}
	c.nc.Close()
	<-r.done
	st := r.grace().Stats()
	if r.err != nil || st.Late != 0 || st.Forced.Total() != 0 {
		fail("%+v, %v", st, r.err)
	}
	// The answer to a request that has begun need not announce the close: see behind.
	if first == "" && st.ClosedIdle != 1 {
		fail("%+v", st)
	}
}

func (r *rig) forgetReads() {
	for len(r.read) > 0 {
		<-r.read
	}
	for len(r.started) > 0 {
		<-r.started
	}
}

// A large body is read past net/http's buffer; that must not make the
// connection look busy for ever.
func TestConnectionIsAtRestAfterALargeBody(t *testing.T) {
	r := startRig(t, rigOptions{kind: graceKind, handler: func(_ http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 100_000)
		for {
			if _, err := r.Body.Read(buf); err != nil {
				return
			}
		}
	}})
	c := r.dial()
	c.ask(post("/", strings.Repeat("x", 1_000_000)))
	r.waitState(http.StateIdle)
	r.shutdown(20 * time.Second)
	r.grace().dismissIdle()
	if err := c.ends(); err != nil {
		t.Fatal(err)
	}
	c.nc.Close()
	r.drained()
	if st := r.grace().Stats(); st != (Stats{ClosedIdle: 1}) {
		t.Errorf("%+v", st)
	}
}

// Requests that were read ahead are answered, all of them, before the close.
func TestPipelinedRequestsAreAnsweredBeforeTheClose(t *testing.T) {
	for _, mode := range []struct {
		name          string
		tls           bool
		before, after int // requests sent before and after the drain begins
	}{
		{"before", false, 5, 0},
		{"after", false, 1, 5},
		{"both", false, 3, 5},
		{"before, TLS", true, 5, 0},
		{"after, TLS", true, 1, 5},
		{"both, TLS", true, 3, 5},
	} {
		t.Run(mode.name, func(t *testing.T) {
			release := make(chan struct{})
			r := startRig(t, rigOptions{kind: graceKind, tls: mode.tls, handler: func(w http.ResponseWriter, r *http.Request) {
				hello(w, r)
				if r.URL.Path == "/wait" {
					http.NewResponseController(w).Flush()
					<-release
				}
			}})
			c := r.dial()
			c.ask(get("/")) // what follows a handshake is not known to be a second request
			r.waitState(http.StateIdle)
			c.send(get("/wait") + requests(mode.before-1))
			if _, err := c.br.Peek(1); err != nil {
				t.Fatal(err)
			}
			r.shutdown(20 * time.Second)
			c.send(requests(mode.after))
			close(release)
			for i := range mode.before + mode.after {
				if _, closes, err := c.answer(); err != nil {
					t.Fatalf("answer %d: %v, close announced: %v", i, err, closes)
				}
			}
			c.nc.Close()
			r.drained()
		})
	}
}

// How a client cuts a request into records of TLS does not make it look like
// several requests: the close is announced with its answer.
func TestCloseIsAnnouncedOverTLSHoweverTheRequestIsCut(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, piece := range []int{1, 2, 7, 50, 1000} {
			t.Run(fmt.Sprintf("%s in pieces of %d", tls.VersionName(version), piece), func(t *testing.T) {
				r := startRig(t, rigOptions{kind: graceKind, tls: true, edit: func(hs *http.Server) { hs.TLSConfig.MaxVersion = version }})
				c := r.dial()
				c.ask(get("/"))
				r.waitState(http.StateIdle)
				r.shutdown(20 * time.Second)
				request := post("/", strings.Repeat("x", 300))
				for rest := request; rest != ""; rest = rest[min(piece, len(rest)):] {
					if err := c.send(rest[:min(piece, len(rest))]); err != nil {
						t.Fatal(err)
					}
				}
				if _, closes, err := c.answer(); err != nil || !closes {
					t.Errorf("closes %v, %v", closes, err)
				}
				c.nc.Close()
				r.drained()
			})
		}
	}
}

// net/http ignores an upgrade to h2c, so its answer may say what any other does.
func TestCloseIsAnnouncedToWhoAsksForH2C(t *testing.T) {
	r := startRig(t, rigOptions{kind: graceKind})
	c := r.dial()
	c.ask(get("/"))
	r.waitState(http.StateIdle)
	r.shutdown(20 * time.Second)
	if _, closes := c.ask("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"); !closes {
		t.Error("it is not announced")
	}
	c.nc.Close()
	r.drained()
}

// requests are n requests in one piece, of several kinds.
func requests(n int) string {
	var s strings.Builder
	for i := range n {
		if i%2 == 0 {
			s.WriteString(get("/pipelined"))
		} else {
			s.WriteString(post("/pipelined", strings.Repeat("x", i)))
		}
	}
	return s.String()
}

// Under TLS net/http's buffer is out of sight. What it reads ahead while a
// handler runs is noticed all the same.
func TestRequestBegunDuringTheLastOneIsAnsweredOverTLS(t *testing.T) {
	for k := 1; k < 6; k++ {
		release := make(chan struct{})
		r := startRig(t, rigOptions{kind: graceKind, tls: true, spy: true, handler: waiting(release)})
		c := r.dial()
		c.send(get("/wait"))
		if _, err := c.br.Peek(1); err != nil {
			t.Fatal(err)
		}
		r.forgetReads()
		c.send(get("/")[:k])
		<-r.read
		close(release)
		if _, _, err := c.answer(); err != nil {
			t.Fatal(err)
		}
		r.waitState(http.StateIdle)
		r.shutdown(20 * time.Second)
		r.forgetReads()
		r.grace().dismissIdle()
		<-r.started
		c.send(get("/")[k:])
		if _, _, err := c.answer(); err != nil {
			t.Errorf("%d bytes: %v, %+v", k, err, r.grace().Stats())
		}
		r.srv.Close()
	}
}
