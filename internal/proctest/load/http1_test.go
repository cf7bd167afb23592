package load

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// one runs a single client of one kind for n requests.
func one(t *testing.T, target string, kind Kind, n int) Report {
	t.Helper()
	return finish(t, start(t, Config{
		Target: target, Clients: map[Kind]int{kind: 1}, Requests: n,
		Think: -1, Hold: 50 * time.Millisecond,
	}))
}

// What each kind is there to notice, and nobody else may.
func TestEachKindNoticesItsLoss(t *testing.T) {
	for _, test := range []struct {
		name   string
		kind   Kind
		answer string
		want   Failure
		text   string
	}{
		{"other bytes", Download, ok(strings.Repeat("x", 5*blockSize)), Body, "differ from byte 0"},
		{"too short", Download, ok(blocks("client-0-request-1", 40*time.Millisecond)), Body, "want 20480"},
		{"cut in the middle", Download, "HTTP/1.1 200 OK\r\nContent-Length: 20480\r\n\r\n" + blocks("client-0-request-1", 40*time.Millisecond), Truncated, "EOF"},
		{"half an upload", Upload, ok(blocks("client-0-request-1", 20*time.Millisecond)), Body, "8192 bytes, want 20480"},
		{"another's upload", Upload, ok(blocks("client-1-request-1", 50*time.Millisecond)), Body, "differ from byte"},
		{"another's bytes", Bytewise, ok("client 0 request 2\n"), Body, "differ from byte"},
		{"a HEAD without its length", Head, "HTTP/1.1 200 OK\r\n\r\n", Body, `Content-Length ""`},
		{"no HEAD", Head, "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n", Status, "405"},
		{"modified", NotModified, ok("cached\n"), Status, "200"},
		{"another version", NotModified, "HTTP/1.1 304 Not Modified\r\nEtag: \"2\"\r\n\r\n", Body, `Etag`},
		{"no trailer", Trailers, ok("x"), Body, "want"},
		{"unavailable", HTTP10, "HTTP/1.0 503 Service Unavailable\r\n\r\n", Status, "503"},
		{"cut", HTTP10, "HTTP/1.0 200 OK\r\nContent-Length: 30\r\n\r\npid=7", Truncated, "EOF"},
		{"switches", UpgradeH2C, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", Status, "101"},
	} {
		t.Run(string(test.kind)+": "+test.name, func(t *testing.T) {
			lost(t, one(t, clumsy(t, say(test.answer)), test.kind, 1), 1, test.want, test.text)
		})
	}
}

// ok is a response with this body.
func ok(body string) string {
	return "HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
}

// lost wants n failures, all alike.
func lost(t *testing.T, r Report, n int, want Failure, text string) {
	t.Helper()
	if r.Total.Failed != n || r.Total.Failures[want] != n {
		t.Errorf("want %d of kind %q\n%v", n, want, r)
	}
	if got := strings.Join(r.Total.Examples[want], "\n"); !strings.Contains(got, text) {
		t.Errorf("examples %q, want %q", got, text)
	}
}

// A trailer that is another request's, after the right body.
func TestSwappedTrailerFails(t *testing.T) {
	target := raw(t, func(c net.Conn, in *bufio.Reader) {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		body, _ := io.ReadAll(req.Body)
		if got := req.Trailer.Get("X-Check"); got != "client-0-request-1" {
			t.Errorf("the request has the trailer %q", got)
		}
		resp := http.Response{
			StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1, TransferEncoding: []string{"chunked"}, ContentLength: -1,
			Body: io.NopCloser(strings.NewReader(string(body))), Trailer: http.Header{"X-Check": {"client-0-request-2"}},
		}
		resp.Write(c)
	})
	lost(t, one(t, target, Trailers, 1), 1, Body, `trailer "client-0-request-2"`)
}

// A server that closes while a request is being written byte by byte, or sent
// for a while, loses it.
func TestCloseWithinARequestFails(t *testing.T) {
	for _, kind := range []Kind{Bytewise, Upload} {
		t.Run(string(kind), func(t *testing.T) {
			target := raw(t, func(c net.Conn, in *bufio.Reader) {
				in.ReadString('\n')
				reset(c)
			})
			lost(t, one(t, target, kind, 3), 3, Reset, "")
		})
	}
}

// The pieces arrive one by one: the server sees a part of the request for most
// of the time that it takes.
func TestBytewiseIsWrittenInPieces(t *testing.T) {
	reads := make(chan int, 1)
	target := raw(t, func(c net.Conn, _ *bufio.Reader) {
		var text string
		n, buf := 0, make([]byte, 4096)
		for !strings.HasSuffix(text, "\r\n\r\nclient 0 request 1\n") {
			got, err := c.Read(buf)
			if err != nil {
				t.Errorf("%q: %v", text, err)
				break
			}
			text += string(buf[:got])
			n++
		}
		reads <- n
		say(ok("client 0 request 1\n"))(c)
	})
	if r := one(t, target, Bytewise, 1); r.Total.Failed != 0 {
		t.Error(r)
	}
	if n := <-reads; n < 10 {
		t.Errorf("%d reads: not in pieces", n)
	}
}

func TestContinueWaits(t *testing.T) {
	expecting := func(c net.Conn, in *bufio.Reader) {
		req, err := http.ReadRequest(in)
		if err != nil || req.Header.Get("Expect") != "100-continue" {
			t.Errorf("%v %v", req, err)
		}
		if n := in.Buffered(); n > 0 {
			t.Errorf("%d bytes of the body before the 100", n)
		}
		say("HTTP/1.1 100 Continue\r\n\r\n")(c)
		if req != nil {
			io.Copy(io.Discard, req.Body)
		}
	}
	t.Run("closed before the 100", func(t *testing.T) {
		target := raw(t, func(_ net.Conn, in *bufio.Reader) { http.ReadRequest(in) })
		lost(t, one(t, target, Continue, 3), 3, EOF, "read: ")
	})
	t.Run("no 100", func(t *testing.T) {
		target := raw(t, func(c net.Conn, in *bufio.Reader) {
			http.ReadRequest(in)
			hang(c)
		})
		l := start(t, Config{Target: target, Clients: map[Kind]int{Continue: 3}, Requests: 3, Timeout: 200 * time.Millisecond})
		lost(t, finish(t, l), 3, Timeout, "")
	})
	t.Run("refused", func(t *testing.T) {
		target := raw(t, func(c net.Conn, in *bufio.Reader) {
			http.ReadRequest(in)
			say("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")(c)
		})
		lost(t, one(t, target, Continue, 3), 3, Status, "status 417")
	})
	t.Run("closed after the 100", func(t *testing.T) {
		lost(t, one(t, raw(t, expecting), Continue, 3), 3, EOF, "read: ")
	})
}

// HTTP/1.0 ends with the connection, unless both sides want otherwise.
func TestHTTP10KeepsEverySecondConnection(t *testing.T) {
	target := raw(t, func(c net.Conn, in *bufio.Reader) {
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if req.Proto != "HTTP/1.0" {
				t.Error(req.Proto)
			}
			keep := req.Header.Get("Connection") == "keep-alive"
			head := "HTTP/1.0 200 OK\r\nContent-Length: 30\r\n"
			if keep {
				head += "Connection: keep-alive\r\n"
			}
			say(head + "\r\npid=7 generation=3 version=v1\n")(c)
			if !keep {
				return
			}
		}
	})
	if r := one(t, target, HTTP10, 6); r.Total.Failed != 0 || r.Total.Dials != 3 {
		t.Error(r)
	}
}
