package load

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-handover/handover/internal/site"
)

// The connection is closed while it is kept: the Transport must have no way to
// send the POST again, or it would hide the loss.
func TestTransportDoesNotRetry(t *testing.T) {
	var requests atomic.Int32
	target := raw(t, func(c net.Conn, in *bufio.Reader) {
		answer, err := respond(t, in)
		if err != nil {
			return
		}
		say(answer)(c)
		if readRequest(in) == nil { // the next one gets no answer
			requests.Add(1)
		}
	})
	r := one(t, target, Transport, 12)
	if r.Total.Requests != 12 || r.Total.Failed != 6 || r.Total.Failures[EOF] != 6 || r.Total.Dials != 6 || r.Total.Told != 0 {
		t.Error(r)
	}
	if n := requests.Load(); n != 6 {
		t.Errorf("the server has seen %d requests that it did not answer, want 6", n)
	}
}

func TestTransportNotices(t *testing.T) {
	for _, kind := range []Kind{Transport, H2Transport} {
		t.Run(string(kind), func(t *testing.T) {
			var other atomic.Int32
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == "POST" {
					io.Copy(io.Discard, r.Body)
					fmt.Fprintf(w, "client 0 request %d\n", 1000+other.Add(1))
					return
				}
				site.Handler(3, "v1").ServeHTTP(w, r)
			}))
			s.Config.Protocols = site.Protocols()
			s.Start()
			defer s.Close()
			r := one(t, s.URL, kind, 12)
			if r.Total.Failures[Body] != r.Total.Failed || r.Total.Failed < 6 {
				t.Error(r)
			}
			// Over HTTP/2 one connection may end under several requests, some
			// of which were not written yet.
			r = one(t, clumsy(t, reset), kind, 8)
			if r.Total.Failed == 0 || r.Total.Failed+r.Total.Unsent != 8 || kind == Transport && r.Total.Unsent > 0 {
				t.Error(r)
			}
		})
	}
}

// Each of these is what Go's Transport returns, word for word.
func TestExplain(t *testing.T) {
	const goAway = "http2: Transport received Server's graceful shutdown GOAWAY"
	for _, test := range []struct {
		text            string
		wrote, answered bool
		want            Failure
	}{
		{"net/http: cannot rewind body after connection loss", false, false, unsent},
		{"net/http: cannot rewind body after connection loss", true, false, Other},
		{"http2: client conn not usable", false, false, unsent},
		{"http2: Transport: cannot retry err [http2: client conn not usable] after Request.Body was written", true, false, Other},
		{"http2: Transport: cannot retry err [" + goAway + "] after Request.Body was written", true, false, Rejected},
		{"http2: Transport: cannot retry err [" + goAway + "] after Request.Body was written", false, false, Rejected},
		{"stream error: stream ID 5; REFUSED_STREAM; received from peer", true, false, Rejected},
		{"http2: server sent GOAWAY and closed the connection; LastStreamID=5, ErrCode=NO_ERROR", true, false, EOF},
		{"http2: server sent GOAWAY and closed the connection; LastStreamID=5, ErrCode=NO_ERROR", true, true, Truncated},
		{"http: server closed idle connection", true, false, EOF},
		{"something else", true, false, Other},
	} {
		if got := classify(explain(errors.New(test.text), test.wrote, test.answered)); got != test.want {
			t.Errorf("%s (wrote %v, answered %v): %q, want %q", test.text, test.wrote, test.answered, got, test.want)
		}
	}
}

// Unsent requests are neither failed nor hidden.
func TestUnsentIsReportedApart(t *testing.T) {
	s := httptest.NewServer(site.Handler(3, "v1"))
	defer s.Close()
	l := start(t, Config{Target: s.URL, Clients: map[Kind]int{Transport: 1}, Requests: 5})
	<-l.Done()
	c := l.clients[0]
	c.record(t.Context(), l.started, 0, explain(errors.New("http2: client conn not usable"), false, false))
	r := l.Stop()
	if r.Total.Failed != 0 || r.Total.Unsent != 1 || r.Total.Requests != 6 || !strings.Contains(r.String(), "refused them itself: transport 1\n") {
		t.Errorf("%d unsent\n%v", r.Total.Unsent, r)
	}
	if ended, failed := l.Counts(); ended != 5 || failed != 0 {
		t.Errorf("Counts says %d, %d", ended, failed)
	}
}
