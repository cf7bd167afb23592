package load

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/site"
)

// asker is a client of target, which is as a Load wants it.
func asker(t *testing.T, target string, keep bool) *Asker {
	t.Helper()
	to, err := parseTarget(target)
	if err != nil {
		t.Fatal(err)
	}
	a := NewAsker(Peer{Network: to.network, Address: to.address, TLS: to.tls, Keep: keep, Timeout: 10 * time.Second})
	t.Cleanup(a.Close)
	return a
}

var getRoot = Ask{Method: "GET", Host: "test", Path: "/"}

func TestAnyCompleteResponseIsAnAnswer(t *testing.T) {
	for _, test := range []struct {
		name, response string
		status         int
		start          string
	}{
		{"as it should be", ok("pid=7\n"), 200, "pid=7\n"},
		{"not found", "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone", 404, "none"},
		{"a redirect", "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", 302, ""},
		{"no content", "HTTP/1.1 204 No Content\r\n\r\n", 204, ""},
		{"hints first", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok("y"), 200, "y"},
		{"in chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", 200, "ab"},
		{"up to the end of the connection", "HTTP/1.0 200 OK\r\n\r\nend", 200, "end"},
		{"a long one", ok(strings.Repeat("x", 100_000)), 200, strings.Repeat("x", answerStart)},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := asker(t, clumsy(t, say(test.response)), false)
			answer, err := a.Ask(t.Context(), getRoot)
			if err != nil || answer.Status != test.status || answer.Start != test.start {
				t.Errorf("%d %q, %v", answer.Status, answer.Start, err)
			}
		})
	}
}

func TestAskClassifiesEachLoss(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(net.Conn)
		want Failure
	}{
		{"closes", func(net.Conn) {}, EOF},
		{"resets", reset, Reset},
		{"half a header", say("HTTP/1.1 200 OK\r\nContent-"), Truncated},
		{"half a body", say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), Truncated},
		{"half a chunk", say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"), Truncated},
		{"another language", say("220 mail.example ESMTP\r\n"), Other},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := asker(t, clumsy(t, test.do), false).Ask(t.Context(), getRoot)
			if got := Classify(err); err == nil || got != test.want {
				t.Errorf("%v is %q, want %q", err, got, test.want)
			}
		})
	}
	t.Run("hangs", func(t *testing.T) {
		a := asker(t, clumsy(t, hang), false)
		a.peer.Timeout = 50 * time.Millisecond
		if _, err := a.Ask(t.Context(), getRoot); Classify(err) != Timeout {
			t.Error(err)
		}
	})
	t.Run("an unknown certificate", func(t *testing.T) {
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		s.StartTLS()
		defer s.Close()
		a := asker(t, s.URL, false)
		a.link.load.target.tls = &tls.Config{ServerName: "127.0.0.1"}
		if _, err := a.Ask(t.Context(), getRoot); Classify(err) != TLS {
			t.Error(err)
		}
	})
}

// What is answered while the body is still being sent is an answer.
func TestEarlyAnswerCounts(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
	}))
	defer s.Close()
	a := asker(t, s.URL, true)
	answer, err := a.Ask(t.Context(), Ask{Method: "POST", Host: "test", Path: "/", Body: strings.Repeat("x", 200<<10)})
	if err != nil || answer.Status != http.StatusRequestEntityTooLarge {
		t.Errorf("%d, %v", answer.Status, err)
	}
}

func TestAskSendsWhatItIsTold(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Proto", r.Proto)
		fmt.Fprintf(w, "%s %s %s %q %d %s", r.Method, r.Host, r.URL.RequestURI(), r.Header.Get("X-Key"), r.ContentLength, body)
	}))
	s.Config.Protocols = site.Protocols()
	s.Start()
	defer s.Close()
	for _, h2 := range []bool{false, true} {
		for _, test := range []struct {
			method, body, want string
		}{
			{"GET", "", `GET example.test /a?b=c "a key" 0 `},
			{"POST", "body", `POST example.test /a?b=c "a key" 4 body`},
			{"PUT", "", `PUT example.test /a?b=c "a key" 0 `},
		} {
			a := asker(t, s.URL, true)
			a.peer.H2 = h2
			answer, err := a.Ask(t.Context(), Ask{
				Method: test.method, Host: "example.test", Path: "/a?b=c", Body: test.body, Fields: []Field{{"X-Key", "a key"}},
			})
			if err != nil || answer.Start != test.want {
				t.Errorf("HTTP/2 %v: %q, want %q, %v", h2, answer.Start, test.want, err)
			}
			if (answer.Block != nil) != h2 || (answer.Header.Get("X-Proto") == "HTTP/1.1") == h2 {
				t.Errorf("HTTP/2 %v: header %v, block %q", h2, answer.Header, answer.Block)
			}
		}
	}
}

// A server may close a kept connection between two requests, and even say so:
// the next request must not be lost to it, nor take the words for its answer.
func TestIdleNoticesTheEndOfAConnection(t *testing.T) {
	for name, farewell := range map[string]string{
		"closed": "", "with words": "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			target := raw(t, func(c net.Conn, in *bufio.Reader) {
				if readRequest(in) == nil {
					io.WriteString(c, ok("1")+farewell)
				}
			})
			a := asker(t, target, true)
			for range 3 {
				if answer, err := a.Ask(t.Context(), getRoot); err != nil || answer.Status != 200 {
					t.Fatal(answer.Status, err)
				}
				// It returns at the event, and then rests: so the wait has an end.
				rested, cancel := context.WithCancel(t.Context())
				go func() {
					for a.closed() == 0 {
						time.Sleep(time.Millisecond)
					}
					cancel()
				}()
				a.Idle(rested, time.Minute)
				a.link.mu.Lock()
				a.link.closed = 0
				a.link.mu.Unlock()
			}
			if n := a.Dials(); n != 3 {
				t.Errorf("%d connections, want 3", n)
			}
		})
	}
}

func (a *Asker) closed() int {
	a.link.mu.Lock()
	defer a.link.mu.Unlock()
	return a.link.closed
}

func TestAskKeepsItsConnectionOrNot(t *testing.T) {
	s := httptest.NewUnstartedServer(site.Handler(1, "v1"))
	s.Config.Protocols = site.Protocols()
	s.Start()
	defer s.Close()
	for _, h2 := range []bool{false, true} {
		for keep, want := range map[bool]int{true: 1, false: 5} {
			a := asker(t, s.URL, keep)
			a.peer.H2 = h2
			for range 5 {
				if _, err := a.Ask(t.Context(), getRoot); err != nil {
					t.Fatal(err)
				}
			}
			if n := a.Dials(); n != want {
				t.Errorf("HTTP/2 %v, keep %v: %d connections, want %d", h2, keep, n, want)
			}
		}
	}
}

// A long answer over HTTP/2 is read to its end, and not kept.
func TestLongAnswersAreNotKept(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range 1000 {
			io.WriteString(w, strings.Repeat("x", 1000))
		}
	}))
	s.Config.Protocols = site.Protocols()
	s.Start()
	defer s.Close()
	a := asker(t, s.URL, true)
	a.peer.H2 = true
	for range 2 {
		if answer, err := a.Ask(t.Context(), getRoot); err != nil || len(answer.Start) != answerStart {
			t.Errorf("%d bytes, %v", len(answer.Start), err)
		}
	}
	if n := a.Dials(); n != 1 {
		t.Errorf("%d connections", n)
	}
}
