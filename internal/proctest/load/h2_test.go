package load

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/site"
)

// h2server is the server's side of one connection, which does what a test says.
type h2server struct {
	net.Conn
	in *bufio.Reader
}

// h2raw runs do on each connection, after both sides have said hello.
func h2raw(t *testing.T, do func(h2server)) (target string) {
	t.Helper()
	return raw(t, func(c net.Conn, in *bufio.Reader) {
		hello := make([]byte, len(preface))
		if _, err := io.ReadFull(in, hello); err != nil || string(hello) != preface {
			t.Errorf("preface %q, %v", hello, err)
			return
		}
		s := h2server{c, in}
		s.say(settingsFrame())
		do(s)
	})
}

func (s h2server) say(frames ...frame) {
	var b []byte
	for _, f := range frames {
		b = f.appendTo(b)
	}
	s.Write(b)
}

// leave closes as a server does that does not reset: what the client still says
// is read, as the kernel would answer it with a reset otherwise.
func (s h2server) leave() {
	if tcp, ok := s.Conn.(*net.TCPConn); ok {
		tcp.CloseWrite()
		tcp.SetReadDeadline(time.Now().Add(10 * time.Second))
	}
	io.Copy(io.Discard, s.in)
}

// await returns the next frame of a kind.
func (s h2server) await(kind byte) (frame, error) {
	for {
		f, err := readFrame(s.in)
		if err != nil || f.kind == kind {
			return f, err
		}
	}
}

// ping returns when the client has read all that was said to it.
func (s h2server) ping() error {
	s.say(frame{kind: framePing, payload: make([]byte, 8)})
	_, err := s.await(framePing)
	return err
}

// answer is right for the requests GET /.
func (s h2server) answer(stream uint32) {
	s.say(frame{kind: frameHeaders, flags: flagEndHeaders, stream: stream, payload: []byte("\x88")},
		frame{kind: frameData, flags: flagEndStream, stream: stream, payload: []byte("pid=7 generation=3 version=v1\n")})
}

// goAway is what a server says that will process no stream after last.
func (s h2server) goAway(last uint32) {
	s.say(frame{kind: frameGoAway, payload: append(numberFrame(0, 0, last).payload, 0, 0, 0, 0)})
}

// get sends a GET / on conn.
func get(t *testing.T, h *h2, conn *h2conn) *h2stream {
	t.Helper()
	s := conn.open(time.Minute, h.header("GET", "/", 0), true)
	if s == nil {
		t.Fatal("no stream may be opened")
	}
	return s
}

// h2client is a client with a connection to target, whose frames a test chooses.
func h2client(t *testing.T, target string) (*h2, *h2conn) {
	t.Helper()
	l := &Load{cfg: Config{}.withDefaults(), more: make(chan struct{})}
	var err error
	if l.target, err = parseTarget(target); err != nil {
		t.Fatal(err)
	}
	h := newH2(&client{load: l, kind: H2})
	conn, err := h.connected(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.close)
	return h, conn
}

// The two steps of RFC 9113, section 6.8: after the first a client opens no
// stream; all that it has opened are answered; then it leaves by itself.
func TestH2ObeysGOAWAY(t *testing.T) {
	said, left := make(chan struct{}), make(chan error, 1)
	target := h2raw(t, func(s h2server) {
		if _, err := s.await(frameHeaders); err != nil {
			return // the next connection
		}
		s.goAway(1<<31 - 1)
		if err := s.ping(); err != nil {
			t.Error(err)
		}
		close(said)
		s.goAway(1)
		s.answer(1)
		_, err := s.await(frameHeaders)
		left <- err
	})
	h, conn := h2client(t, target)
	stream := get(t, h, conn)
	<-said
	if conn.usable() || conn.open(time.Minute, nil, true) != nil {
		t.Error("it opens a stream after the GOAWAY")
	}
	<-stream.done
	if stream.err != nil || stream.status != http.StatusOK {
		t.Errorf("status %d, %v", stream.status, stream.err)
	}
	if err := <-left; !errors.Is(err, io.EOF) {
		t.Errorf("it does not leave: %v", err)
	}
	again, err := h.connected(t.Context())
	if err != nil || again == conn || h.dials != 2 || h.closed != 0 {
		t.Errorf("%d connections, %v", h.dials, err)
	}
}

func TestH2NoticesWhatIsLost(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(h2server, uint32)
		want Failure
		text string
	}{
		{"closes", func(s h2server, _ uint32) { s.leave() }, EOF, "stream 1: EOF"},
		{"resets", func(s h2server, _ uint32) {
			s.ping() // or a write is told of the reset, and the read not
			reset(s.Conn)
		}, Reset, "stream 1: "},
		{"closes within a response", func(s h2server, id uint32) {
			s.say(frame{kind: frameHeaders, flags: flagEndHeaders, stream: id, payload: []byte("\x88")})
			s.leave()
		}, Truncated, "EOF"},
		{"closes within a frame", func(s h2server, _ uint32) {
			s.Write([]byte{0, 0, 9})
			s.leave()
		}, EOF, "EOF"},
		{"goes away without it", func(s h2server, _ uint32) {
			s.goAway(0)
			s.await(frameHeaders) // until it leaves
		}, Rejected, "GOAWAY (error 0), last stream 0"},
		{"goes away with it", func(s h2server, id uint32) {
			s.goAway(id)
			s.leave()
		}, EOF, "EOF"},
		{"refuses the stream", func(s h2server, id uint32) {
			s.say(numberFrame(frameReset, id, errorRefusedStream))
			s.await(frameHeaders)
		}, Rejected, "RST_STREAM (error 7)"},
		{"breaks the stream", func(s h2server, id uint32) {
			s.say(numberFrame(frameReset, id, 2))
			s.await(frameHeaders)
		}, Other, "RST_STREAM (error 2)"},
		{"is unavailable", func(s h2server, id uint32) {
			s.say(frame{kind: frameHeaders, flags: flagEndHeaders | flagEndStream, stream: id, payload: []byte("\x48\x03503")})
			s.await(frameHeaders)
		}, Status, "status 503"},
		{"answers nothing", func(s h2server, id uint32) {
			s.say(frame{kind: frameHeaders, flags: flagEndHeaders | flagEndStream, stream: id, payload: []byte("\x88")})
			s.await(frameHeaders)
		}, Body, "0 bytes, want"},
		{"answers another stream", func(s h2server, id uint32) { s.answer(id + 2) }, Other, "not opened"},
		{"pushes", func(s h2server, _ uint32) { s.answer(2) }, Other, "not opened"},
		{"speaks another language", func(s h2server, _ uint32) { say("HTTP/1.1 200 OK\r\n\r\n")(s.Conn) }, Other, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := h2raw(t, func(s h2server) {
				if f, err := s.await(frameHeaders); err == nil {
					test.do(s, f.stream)
				}
			})
			h, conn := h2client(t, target)
			stream := get(t, h, conn)
			r := h2request{check: h.load.identity}
			err := exchange(conn, time.Minute, stream, r)
			if err == nil || classify(err) != test.want || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v, want %q, %q", err, test.want, test.text)
			}
		})
	}
}

func TestH2HasALimit(t *testing.T) {
	canceled := make(chan frame, 1)
	target := h2raw(t, func(s h2server) {
		f, _ := s.await(frameReset)
		canceled <- f
	})
	h, conn := h2client(t, target)
	stream := get(t, h, conn)
	if err := exchange(conn, 50*time.Millisecond, stream, h2request{}); classify(err) != Timeout {
		t.Error(err)
	}
	if f := <-canceled; f.stream != stream.id {
		t.Errorf("%+v is canceled", f)
	}
}

// It sends no more than it may, at once, and all of it in the end.
func TestH2KeepsToTheWindows(t *testing.T) {
	const length, window, large = 200_000, 1000, 1 << 20
	body := strings.Repeat("x", length)
	received := make(chan int, 1)
	target := h2raw(t, func(s h2server) {
		s.say(settingsFrame(settingInitialWindow, window), numberFrame(frameWindowUpdate, 0, large))
		if f, err := s.await(frameHeaders); err != nil || f.has(flagEndStream) {
			t.Errorf("%+v, %v", f, err)
		}
		total, unpaid := 0, 0
		for {
			f, err := s.await(frameData)
			if err != nil {
				t.Error(err)
				break
			}
			total, unpaid = total+len(f.payload), unpaid+len(f.payload)
			if unpaid > window {
				t.Errorf("%d bytes in a window of %d", unpaid, window)
			}
			if f.has(flagEndStream) {
				break
			}
			if unpaid == window {
				unpaid = 0
				s.say(numberFrame(frameWindowUpdate, 1, window))
			}
		}
		received <- total
		s.answer(1)
		s.await(frameHeaders)
	})
	h, conn := h2client(t, target)
	for deadline := time.Now().Add(10 * time.Second); !settled(conn, window) && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	stream := conn.open(time.Minute, h.header("POST", "/", length), false)
	if err := exchange(conn, time.Minute, stream, h2request{body: body, check: h.load.identity}); err != nil {
		t.Error(err)
	}
	if n := <-received; n != length {
		t.Errorf("%d bytes, want %d", n, length)
	}
}

// settled reports that the server's window is known.
func settled(c *h2conn, window int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.initial == window && c.window > defaultWindow
}

// And it lets the server send as much as it wants: net/http stops at the window.
func TestH2GivesWindowsBack(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16) // 1 MiB
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }))
	s.Config.Protocols = site.Protocols()
	s.Start()
	defer s.Close()
	h, conn := h2client(t, s.URL)
	for range 3 {
		if err := exchange(conn, time.Minute, get(t, h, conn), h2request{check: exactly(string(body))}); err != nil {
			t.Fatal(err)
		}
	}
}

// A header block may come in several frames, after an informational one, and
// with trailers after the body.
func TestH2ReadsEveryFormOfResponse(t *testing.T) {
	target := h2raw(t, func(s h2server) {
		f, err := s.await(frameHeaders)
		if err != nil {
			t.Error(err)
		}
		id := f.stream
		s.say(
			frame{kind: 0xAA, stream: 7, payload: []byte("unknown")},
			frame{kind: frameHeaders, flags: flagEndHeaders, stream: id, payload: []byte("\x08\x03103")},
			frame{kind: frameHeaders, stream: id, payload: []byte("\x20")},
			frame{kind: frameContinuation, flags: flagEndHeaders, stream: id, payload: []byte("\x88")},
			frame{kind: frameData, flags: flagPadded, stream: id, payload: []byte("\x03pid=7 generation=3 ...")},
			frame{kind: frameData, stream: id, payload: []byte("version=v1\n")},
			frame{kind: frameHeaders, flags: flagEndHeaders | flagEndStream, stream: id, payload: []byte("\x00\x01a\x01b")},
		)
		s.await(frameHeaders)
	})
	h, conn := h2client(t, target)
	if err := exchange(conn, time.Minute, get(t, h, conn), h2request{check: h.load.identity}); err != nil {
		t.Error(err)
	}
}

// A server that shuts down as net/http does, while streams come all the time,
// refuses some: what the strict client is there to show.
func TestH2CountsEachStreamThatAServerRefuses(t *testing.T) {
	target := h2raw(t, func(s h2server) {
		for {
			if _, err := s.await(frameHeaders); err != nil {
				return
			}
			s.goAway(0)
		}
	})
	r := finish(t, start(t, Config{Target: target, Clients: map[Kind]int{H2: 1}, Requests: 12, Think: -1}))
	if r.Total.Failed != 12 || r.Total.Failures[Rejected] != 12 || r.Total.Dials < 3 {
		t.Error(r)
	}
}
