package load

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"testing"
)

// eventsRaw answers with a stream of chunks that say writes, from the event
// that the client wants on.
func eventsRaw(t *testing.T, say func(c net.Conn, id int) (keep bool)) (target string) {
	t.Helper()
	return raw(t, func(c net.Conn, in *bufio.Reader) {
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			var last int
			if _, err := fmt.Sscan(req.Header.Get("Last-Event-ID"), &last); err != nil {
				t.Errorf("Last-Event-ID: %v", err)
			}
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
			if !say(c, last+1) {
				return
			}
		}
	})
}

func chunk(text string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(text), text) }

func event(id int) string { return fmt.Sprintf("id: %d\ndata: event %d\n\n", id, id) }

const lastChunk = "0\r\n\r\n"

func TestEventsGoOnAfterACleanEnd(t *testing.T) {
	t.Run("on the same connection", func(t *testing.T) {
		target := eventsRaw(t, func(c net.Conn, id int) bool {
			fmt.Fprint(c, chunk(event(id)), chunk(event(id + 1)[:5]), chunk(event(id + 1)[5:]), lastChunk)
			return true
		})
		if r := one(t, target, SSE, 12); r.Total.Failed != 0 || r.Total.Requests != 12 || r.Total.Dials != 1 {
			t.Error(r)
		}
	})
	t.Run("on the next one", func(t *testing.T) {
		target := raw(t, func(c net.Conn, in *bufio.Reader) {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			var last int
			fmt.Sscan(req.Header.Get("Last-Event-ID"), &last)
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n", chunk(event(last+1)), lastChunk)
		})
		if r := one(t, target, SSE, 12); r.Total.Failed != 0 || r.Total.Requests != 12 || r.Total.Dials != 12 {
			t.Error(r)
		}
	})
}

func TestEventsNoticeWhatIsLost(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(c net.Conn, id int)
		want Failure
		text string
	}{
		{"no clean end", func(c net.Conn, id int) { fmt.Fprint(c, chunk(event(id))) }, Truncated, "EOF"},
		{"no event", func(net.Conn, int) {}, Truncated, "EOF"},
		{"a cut event", func(c net.Conn, id int) { fmt.Fprint(c, chunk(event(id)), chunk("id: ")) }, Truncated, "EOF"},
		{"half an event", func(c net.Conn, id int) { fmt.Fprint(c, chunk(event(id)), chunk("id: "), lastChunk) }, Body, "within an event"},
		{"a missing event", func(c net.Conn, id int) { fmt.Fprint(c, chunk(event(id)), chunk(event(id+2)), lastChunk) }, Body, "differ"},
		{"an event twice", func(c net.Conn, id int) { fmt.Fprint(c, chunk(event(id)), chunk(event(id)), lastChunk) }, Body, "differ"},
		{"a reset", func(c net.Conn, id int) {
			fmt.Fprint(c, chunk(event(id)), chunk("id: "))
			reset(c)
		}, Reset, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := eventsRaw(t, func(c net.Conn, id int) bool {
				test.do(c, id)
				return false
			})
			r := one(t, target, SSE, 12)
			if got := r.Total.Failures[test.want]; got < 6 || got != r.Total.Failed {
				t.Errorf("want %q\n%v", test.want, r)
			}
			if len(r.Total.Examples[test.want]) > 0 {
				lost(t, r, r.Total.Failed, test.want, test.text)
			}
		})
	}
	t.Run("two streams without an event", func(t *testing.T) {
		target := eventsRaw(t, func(c net.Conn, _ int) bool {
			fmt.Fprint(c, lastChunk)
			return true
		})
		lost(t, one(t, target, SSE, 3), 3, Body, "a stream without an event")
	})
	t.Run("an end that says nothing", func(t *testing.T) {
		target := clumsy(t, say("HTTP/1.1 200 OK\r\n\r\n"+event(1)))
		lost(t, one(t, target, SSE, 3), 3, Body, "not chunked")
	})
	t.Run("unavailable", func(t *testing.T) {
		target := clumsy(t, say("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"))
		lost(t, one(t, target, SSE, 3), 3, Status, "503")
	})
}
