package load

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// wsServer is the server's side of one WebSocket.
type wsServer struct {
	net.Conn
	in *bufio.Reader
}

// wsRaw runs do on each WebSocket, the n-th from 1 on.
func wsRaw(t *testing.T, do func(s wsServer, n int)) (target string) {
	t.Helper()
	var n atomic.Int32
	return raw(t, func(c net.Conn, in *bufio.Reader) {
		req, err := http.ReadRequest(in)
		if err != nil {
			return // the load has ended
		}
		say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " +
			accept(req.Header.Get("Sec-Websocket-Key")) + "\r\n\r\n")(c)
		do(wsServer{c, in}, int(n.Add(1)))
	})
}

// receive returns a frame, whose mask is zero.
func (s wsServer) receive() (head byte, payload []byte, err error) {
	var b [6]byte
	if _, err := io.ReadFull(s.in, b[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, b[1]&0x7F)
	_, err = io.ReadFull(s.in, payload)
	return b[0], payload, err
}

func (s wsServer) say(head byte, payload []byte) {
	s.Write(append([]byte{head, byte(len(payload))}, payload...))
}

func (s wsServer) close(code uint16) { s.say(wsClose, binary.BigEndian.AppendUint16(nil, code)) }

// echo returns when something else than a message arrives.
func (s wsServer) echo(n int) (head byte, payload []byte, err error) {
	for i := 0; ; i++ {
		head, payload, err = s.receive()
		if err != nil || head != wsText || i == n {
			return head, payload, err
		}
		s.say(head, payload)
	}
}

const forever = 1 << 30

// RFC 6455 has this example, in section 1.3.
func TestAccept(t *testing.T) {
	if got := accept("dGhlIHNhbXBsZSBub25jZQ=="); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Error(got)
	}
}

func TestWebSocketThatGoesAwayIsNoFailure(t *testing.T) {
	// handshake completes what the server has begun.
	handshake := func(s wsServer) {
		s.close(wsGoingAway)
		for {
			head, payload, err := s.receive()
			if err == nil && head == wsText {
				continue // it has crossed the close
			}
			if err != nil || head != wsClose || string(payload) != "\x03\xe9" {
				t.Errorf("the client closes with %#x %q, %v", head, payload, err)
			}
			return
		}
	}
	t.Run("between two messages", func(t *testing.T) {
		target := wsRaw(t, func(s wsServer, n int) {
			if n > 2 {
				s.echo(forever)
				return
			}
			s.say(wsPing, []byte("are you there"))
			head, payload, err := s.receive()
			for err == nil && head == wsText {
				s.say(head, payload)
				head, payload, err = s.receive()
			}
			if err != nil || head != wsPong || string(payload) != "are you there" {
				t.Errorf("the client answers the ping with %#x %q, %v", head, payload, err)
			}
			handshake(s)
		})
		r := finish(t, start(t, Config{Target: target, Clients: map[Kind]int{WS: 1}, Requests: 12, Think: 50 * time.Millisecond}))
		if r.Total.Failed != 0 || r.Total.Dials != 3 || r.Total.Closed+r.Total.Told != 2 {
			t.Errorf("%d closed, %d told\n%v", r.Total.Closed, r.Total.Told, r)
		}
	})
	t.Run("in the middle of one", func(t *testing.T) {
		target := wsRaw(t, func(s wsServer, n int) {
			if n > 2 {
				s.echo(forever)
				return
			}
			s.echo(3)
			handshake(s) // instead of an echo
		})
		r := one(t, target, WS, 12)
		if r.Total.Failed != 0 || r.Total.Requests != 12 || r.Total.Dials != 3 || r.Total.Told != 2 {
			t.Errorf("%d told\n%v", r.Total.Told, r)
		}
	})
}

func TestWebSocketNoticesWhatIsLost(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(s wsServer, message []byte)
		want Failure
		text string
	}{
		{"closes without a close frame", func(wsServer, []byte) {}, EOF, "read: EOF"},
		{"resets", func(s wsServer, _ []byte) { reset(s.Conn) }, Reset, "read: "},
		{"closes within a frame", func(s wsServer, _ []byte) { s.Write([]byte{wsText, 20, 'c'}) }, Truncated, "EOF"},
		{"says another thing", func(s wsServer, _ []byte) { s.say(wsText, []byte("client 7 message 1")) }, Body, "differ"},
		{"says half", func(s wsServer, m []byte) { s.say(wsText, m[:3]) }, Body, "3 bytes, want"},
		{"says it in binary", func(s wsServer, m []byte) { s.say(0x82, m) }, Body, "frame 0x82"},
		{"closes for an error", func(s wsServer, _ []byte) { s.close(1011) }, Body, "close code 1011"},
		{"closes for no reason", func(s wsServer, _ []byte) { s.say(wsClose, nil) }, Body, "close code 0"},
		{"goes on after the close", func(s wsServer, m []byte) {
			s.close(wsGoingAway)
			s.say(wsText, m)
		}, Body, "bytes after the close"},
		{"says a lot", func(s wsServer, _ []byte) { s.Write([]byte{wsText, 126, 1, 0}) }, Body, "length 0x7e"},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := wsRaw(t, func(s wsServer, _ int) {
				if head, message, err := s.receive(); err == nil && head == wsText {
					test.do(s, message)
					if tcp, ok := s.Conn.(*net.TCPConn); ok && test.want == Body {
						tcp.CloseWrite()
						hang(s.Conn)
					}
				}
			})
			lost(t, one(t, target, WS, 3), 3, test.want, test.text)
		})
	}
	t.Run("is none", func(t *testing.T) {
		target := clumsy(t, say("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n"))
		lost(t, one(t, target, WS, 3), 3, Body, `Accept "x"`)
		lost(t, one(t, clumsy(t, say(answer)), WS, 3), 3, Status, "status 200")
	})
}

// A connection that is lost while nothing is said is one failure, at once.
func TestWebSocketThatIsLostWhileIdleFails(t *testing.T) {
	target := wsRaw(t, func(s wsServer, _ int) {
		if head, message, err := s.receive(); err == nil {
			s.say(head, message)
		}
	})
	r := finish(t, start(t, Config{Target: target, Clients: map[Kind]int{WS: 1}, Requests: 4, Think: 50 * time.Millisecond}))
	lost(t, r, 2, EOF, "read: EOF")
	if r.Total.Requests != 4 || r.Total.Dials != 2 || strings.Contains(r.String(), "told") {
		t.Error(r)
	}
}
