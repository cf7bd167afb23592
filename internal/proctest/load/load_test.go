package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/site"
)

// each is one client of each kind that sends a whole request, which any server
// can read, and wants a body.
func each() map[Kind]int {
	return map[Kind]int{New: 1, Late: 1, Get: 1, Post: 1, Slow: 1, Stream: 1, Bytewise: 1, Upload: 1, Download: 1}
}

func start(t *testing.T, cfg Config) *Load {
	t.Helper()
	l, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// finish waits until the load has reached its bound.
func finish(t *testing.T, l *Load) Report {
	t.Helper()
	select {
	case <-l.Done():
	case <-time.After(20 * time.Second):
		t.Error("the load does not end by itself")
	}
	return l.Stop()
}

// A clumsy server reads one request on each connection and then does answer.
func clumsy(t *testing.T, answer func(net.Conn)) (target string) {
	t.Helper()
	return raw(t, func(c net.Conn, in *bufio.Reader) {
		if readRequest(in) == nil {
			answer(c)
		}
	})
}

// A raw server does as it likes with each connection.
func raw(t *testing.T, do func(c net.Conn, in *bufio.Reader)) (target string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				do(c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return "http://" + ln.Addr().String()
}

func readRequest(r *bufio.Reader) error {
	req, err := http.ReadRequest(r)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, req.Body)
	return err
}

func say(text string) func(net.Conn) {
	return func(c net.Conn) { io.WriteString(c, text) }
}

// answer is right for GET /.
const answer = "HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\npid=7 generation=3 version=v1\n"

func reset(c net.Conn) { c.(*net.TCPConn).SetLinger(0) } // takes effect at Close

// hang lasts until the client has had enough.
func hang(c net.Conn) { io.Copy(io.Discard, c) }

func TestEachFailureIsCountedUnderItsKind(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer func(net.Conn)
		want   Failure
		text   string // part of the example
	}{
		{"reset", reset, Reset, "read: "},
		{"closes without an answer", func(net.Conn) {}, EOF, "read: "},
		{"resets within the answer", func(c net.Conn) {
			say("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc")(c)
			reset(c)
		}, Reset, "read: "},
		{"closes within the header", say("HTTP/1.1 200 OK\r\nContent-Le"), Truncated, "read: "},
		{"closes within the body", say("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc"), Truncated, "read: "},
		{"closes between two chunks", say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"), Truncated, "read: "},
		{"unavailable", say("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"), Status, "status 503"},
		{"lies", say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlie\n"), Body, "4 bytes, want"},
		{"answers nothing", say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), Body, ", want"},
		{"hangs", hang, Timeout, "read: "},
		{"hangs within the body", func(c net.Conn) {
			say("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc")(c)
			hang(c)
		}, Timeout, "read: "},
		{"speaks another language", say("220 mail.example ESMTP\r\n"), Other, "malformed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := Config{
				Target: clumsy(t, test.answer), Clients: each(), Requests: 12,
				Think: -1, Hold: 10 * time.Millisecond,
			}
			if test.want == Timeout {
				cfg.Timeout = 200 * time.Millisecond
			}
			expect(t, finish(t, start(t, cfg)), test.want, test.text)
		})
	}
}

// expect wants every request to have failed, and all alike.
func expect(t *testing.T, r Report, want Failure, text string) {
	t.Helper()
	if r.Total.Requests != 12 || r.Total.Failed != 12 || r.Total.Failures[want] != 12 {
		t.Errorf("want 12 of kind %q\n%v", want, r)
	}
	if examples := r.Total.Examples[want]; len(examples) != 3 || !strings.Contains(examples[0], text) {
		t.Errorf("examples %q, want 3 with %q", examples, text)
	}
}

func TestRefusedIsCounted(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	for name, target := range map[string]string{
		"tcp": "http://" + ln.Addr().String(), "tls": "https://" + ln.Addr().String(),
		"unix": "unix:" + filepath.Join(t.TempDir(), "gone"),
	} {
		t.Run(name, func(t *testing.T) {
			expect(t, finish(t, start(t, Config{Target: target, Clients: each(), Requests: 12})), Refused, "dial: ")
		})
	}
}

func TestHandshakeThatIsCutIsCounted(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 4096)) // the whole ClientHello: Close sends FIN and not RST
			c.Close()
		}
	}()
	l := start(t, Config{Target: "https://" + ln.Addr().String(), Clients: map[Kind]int{Get: 2}, Requests: 12})
	expect(t, finish(t, l), EOF, "handshake: ")
}

func TestStreamWithAWrongLineFails(t *testing.T) {
	for name, body := range map[string]string{
		"line missing": "line 1\nline 3\nend\n",
		"end missing":  "line 1\nline 2\nline 3\n",
		"ends early":   "line 1\nline 2\n",
		"goes on":      "line 1\nline 2\nline 3\nend\nline 5\n",
	} {
		t.Run(name, func(t *testing.T) {
			target := clumsy(t, say(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)))
			r := finish(t, start(t, Config{
				Target: target, Clients: map[Kind]int{Stream: 1}, Requests: 12, Think: -1, Hold: 30 * time.Millisecond,
			}))
			expect(t, r, Body, "want")
		})
	}
}

// A response that was swapped with another client's is complete and has the
// right length; only its bytes tell.
func TestSwappedBodyFails(t *testing.T) {
	var earlier atomic.Value
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if other, ok := earlier.Swap(body).([]byte); ok {
			body = bytes.Repeat(other, len(body)/len(other)+1)[:len(body)]
		}
		w.Write(body)
	}))
	defer s.Close()
	r := finish(t, start(t, Config{Target: s.URL, Clients: map[Kind]int{Post: 2}, Requests: 12}))
	if r.Total.Failures[Body] != 11 || r.Total.Failed != 11 {
		t.Error(r)
	}
}

// An idle connection may be closed at any time: an attentive client notices
// and dials again.
func TestIdleCloseIsNoFailure(t *testing.T) {
	l := start(t, Config{
		Target: clumsy(t, say(answer)), Clients: map[Kind]int{Get: 4},
		Requests: 8, Think: time.Second, // any is long against the close
	})
	r := finish(t, l)
	if r.Total.Failed != 0 || r.Total.Dials != 8 || r.Total.Closed < 4 {
		t.Errorf("%d idle connections closed\n%v", r.Total.Closed, r)
	}
}

func TestConnectionCloseIsHonoured(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		fmt.Fprintln(w, "pid=7 generation=3 version=v1")
	}))
	defer s.Close()
	r := finish(t, start(t, Config{Target: s.URL, Clients: map[Kind]int{Get: 2}, Requests: 20, Think: -1}))
	if r.Total.Failed != 0 || r.Total.Dials != 20 {
		t.Error(r)
	}
}

// What a server says before it is asked would be taken for the next response.
func TestUnaskedBytesFail(t *testing.T) {
	target := clumsy(t, func(c net.Conn) {
		say(answer + answer)(c)
		readRequest(bufio.NewReader(c))
	})
	r := finish(t, start(t, Config{Target: target, Clients: map[Kind]int{Get: 1}, Requests: 2, Think: -1}))
	if r.Total.Failures[Body] != 1 || r.Total.Failed != 1 {
		t.Error(r)
	}
}

func TestCrashExcusesOnlyWhatItCut(t *testing.T) {
	t.Run("cut", func(t *testing.T) {
		l := start(t, Config{Target: clumsy(t, reset), Clients: each(), Requests: 12, Think: -1})
		<-l.Done()
		l.Crash(l.started, time.Now())
		if r := l.Stop(); r.Total.Failed != 0 || r.Total.Cut != 12 || len(r.Total.Failures) != 0 {
			t.Error(r)
		}
	})
	t.Run("refused", func(t *testing.T) {
		l := start(t, Config{Target: "unix:" + filepath.Join(t.TempDir(), "gone"), Clients: each(), Requests: 12, Think: -1})
		<-l.Done()
		l.Crash(l.started, time.Now())
		expect(t, l.Stop(), Refused, "dial: ")
	})
	t.Run("later", func(t *testing.T) {
		l := start(t, Config{Target: clumsy(t, reset), Clients: each(), Requests: 12, Think: -1})
		<-l.Done()
		l.Crash(l.started.Add(-time.Minute), l.started.Add(-time.Second))
		expect(t, l.Stop(), Reset, "read: ")
	})
}

func TestOwnShutdownIsNoFailure(t *testing.T) {
	s := httptest.NewServer(site.Handler(3, "v1"))
	defer s.Close()

	t.Run("Stop finishes what is in flight", func(t *testing.T) {
		l := start(t, Config{Target: s.URL, Clients: map[Kind]int{Slow: 4, Stream: 4, Post: 4}, Hold: 200 * time.Millisecond})
		waitFor(t, l, 1)
		r := l.Stop()
		if r.Total.Failed != 0 {
			t.Error(r)
		}
		if again := l.Stop(); again.Total.Requests != r.Total.Requests {
			t.Errorf("the second Stop reports %d requests, the first %d", again.Total.Requests, r.Total.Requests)
		}
	})
	t.Run("Stop does not wait for a pause to end", func(t *testing.T) {
		l := start(t, Config{Target: s.URL, Clients: map[Kind]int{Get: 50}, Think: 3 * time.Second, Duration: time.Hour})
		waitFor(t, l, 10)
		began := time.Now()
		if r := l.Stop(); r.Total.Failed != 0 || time.Since(began) > time.Second {
			t.Errorf("Stop took %v\n%v", time.Since(began), r)
		}
	})
	t.Run("a done context abandons it", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l, err := Start(ctx, Config{Target: s.URL, Clients: map[Kind]int{Slow: 4, Stream: 4, Get: 4, New: 4}, Hold: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, l, 20)
		cancel()
		if r := finish(t, l); r.Total.Failed != 0 || r.Elapsed > 4*time.Second {
			t.Error(r)
		}
	})
	t.Run("Duration ends it", func(t *testing.T) {
		l := start(t, Config{Target: s.URL, Duration: 100 * time.Millisecond})
		if r := finish(t, l); r.Total.Failed != 0 || r.Total.Requests == 0 {
			t.Error(r)
		}
	})
}

// waitFor returns when n requests have ended.
func waitFor(t *testing.T, l *Load, n int) {
	t.Helper()
	for {
		if ended, _ := l.Counts(); ended >= n {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatal("no requests")
		case <-time.After(time.Millisecond):
		}
	}
}

func TestBadConfigIsRefused(t *testing.T) {
	for _, target := range []string{"", "127.0.0.1:80", "http://", "http://host", "ftp://host:21", "unix:", "http://%zz:1"} {
		if l, err := Start(t.Context(), Config{Target: target}); err == nil {
			l.Stop()
			t.Errorf("target %q is accepted", target)
		}
	}
	if l, err := Start(t.Context(), Config{Target: "unix:x", Clients: map[Kind]int{}}); err == nil {
		l.Stop()
		t.Error("no clients are accepted")
	}
}

func TestLatency(t *testing.T) {
	var took []time.Duration
	for i := range 1000 {
		took = append(took, time.Duration(1000-i)*time.Millisecond)
	}
	if got, want := measure(took), (Latency{1000, 500 * time.Millisecond, 990 * time.Millisecond, time.Second}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := measure([]time.Duration{5}); got != (Latency{1, 5, 5, 5}) {
		t.Errorf("one sample: %+v", got)
	}
	if got := measure(nil); got != (Latency{}) {
		t.Errorf("no sample: %+v", got)
	}
}

func TestClassify(t *testing.T) {
	if got := classify(errors.New("something else")); got != Other {
		t.Errorf("got %q", got)
	}
	if got := classify(&phaseError{phase: "read", answered: true, err: io.EOF}); got != Truncated {
		t.Errorf("got %q", got)
	}
}
