package site

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/go-handover/handover/httpgrace"
)

// wsClient is the client's side of a WebSocket.
type wsClient struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

// dialWS asks with the key of RFC 6455, section 1.3.
func dialWS(t *testing.T, addr string) *wsClient {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "GET /ws HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", addr)
	c := &wsClient{t, conn, bufio.NewReader(conn)}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() // empty: the frames are not in it
	if accept := resp.Header.Get("Sec-Websocket-Accept"); resp.StatusCode != 101 || accept != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("%s, accept %q", resp.Status, accept)
	}
	return c
}

// send writes a masked frame.
func (c *wsClient) send(head byte, payload []byte) {
	c.t.Helper()
	frame := []byte{head}
	switch n := len(payload); {
	case n <= 125:
		frame = append(frame, 0x80|byte(n))
	case n < 1<<16:
		frame = binary.BigEndian.AppendUint16(append(frame, 0x80|126), uint16(n))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, 0x80|127), uint64(n))
	}
	mask := []byte{1, 2, 3, 4}
	frame = append(frame, mask...)
	for i, b := range payload {
		frame = append(frame, b^mask[i%4])
	}
	if _, err := c.conn.Write(frame); err != nil {
		c.t.Fatal(err)
	}
}

// receive wants this frame, which a server does not mask.
func (c *wsClient) receive(head byte, payload []byte) {
	c.t.Helper()
	want := []byte{head}
	switch n := len(payload); {
	case n <= 125:
		want = append(want, byte(n))
	case n < 1<<16:
		want = binary.BigEndian.AppendUint16(append(want, 126), uint16(n))
	default:
		want = binary.BigEndian.AppendUint64(append(want, 127), uint64(n))
	}
	want = append(want, payload...)
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c.in, got); err != nil || !bytes.Equal(got, want) {
		c.t.Fatalf("got %d bytes % .20x, want %d, % .20x: %v", n, got[:n], len(want), want, err)
	}
}

func (c *wsClient) ended() {
	c.t.Helper()
	if n, err := c.in.Read(make([]byte, 1)); err != io.EOF {
		c.t.Errorf("the connection goes on: %d %v", n, err)
	}
}

// serve runs the handler until drain is called.
func serve(t *testing.T) (addr string, drain func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &httpgrace.Server{Server: &http.Server{Handler: Handler(1, "v1")}, DrainTimeout: 10 * time.Second}
	done, served := make(chan struct{}), make(chan error, 1)
	go func() { served <- srv.ServeUntil(done, ln) }()
	drained := false
	drain = func() {
		if drained {
			return
		}
		drained = true
		close(done)
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(drain)
	return ln.Addr().String(), drain
}

func TestWebSocketEchoes(t *testing.T) {
	addr, _ := serve(t)
	c := dialWS(t, addr)
	for _, size := range []int{0, 1, 125, 126, 1<<16 - 1, 1 << 16, maxFrame} {
		payload := bytes.Repeat([]byte{'x'}, size)
		c.send(0x82, payload)
		c.receive(0x82, payload)
	}
	c.send(0x01, []byte("frag")) // with a ping between the fragments
	c.send(0x89, []byte("ping"))
	c.send(0x80, []byte("ment"))
	c.receive(0x01, []byte("frag"))
	c.receive(0x8A, []byte("ping"))
	c.receive(0x80, []byte("ment"))
	c.send(0x8A, []byte("unasked pong"))
	c.send(0x88, []byte{3, 232, 'b', 'y', 'e'})
	c.receive(0x88, []byte{3, 232, 'b', 'y', 'e'})
	c.ended()
}

func TestWebSocketRefusesWhatIsNoFrame(t *testing.T) {
	addr, _ := serve(t)
	for name, test := range map[string]struct {
		raw  []byte
		code uint16
	}{
		"not masked":         {[]byte{0x81, 0x00}, protocolError},
		"reserved bit":       {[]byte{0xC1, 0x80}, protocolError},
		"reserved opcode":    {[]byte{0x83, 0x80}, protocolError},
		"reserved control":   {[]byte{0x8B, 0x80}, protocolError},
		"fragmented control": {[]byte{0x09, 0x80}, protocolError},
		"long control":       {[]byte{0x89, 0x80 | 126}, protocolError},
		"too big":            {binary.BigEndian.AppendUint64([]byte{0x82, 0x80 | 127}, maxFrame+1), messageTooBig},
	} {
		t.Run(name, func(t *testing.T) {
			c := dialWS(t, addr)
			c.conn.Write(test.raw)
			c.receive(0x88, binary.BigEndian.AppendUint16(nil, test.code))
			c.ended()
		})
	}
}

func TestWebSocketIsToldOfTheDrain(t *testing.T) {
	addr, drain := serve(t)
	c := dialWS(t, addr)
	c.send(0x81, []byte("hello"))
	c.receive(0x81, []byte("hello"))
	go func() {
		c.receive(0x88, []byte{3, 233}) // 1001, going away
		c.send(0x88, []byte{3, 233})
		c.ended()
	}()
	begun := time.Now()
	drain()
	if d := time.Since(begun); d > closeTimeout/2 {
		t.Errorf("the drain takes %v: it does not end with the closing handshake", d)
	}
}

// A client that does not answer the close holds the drain up for a while only.
func TestSilentWebSocketDoesNotHoldTheDrain(t *testing.T) {
	addr, drain := serve(t)
	c := dialWS(t, addr)
	c.send(0x81, []byte("hello"))
	c.receive(0x81, []byte("hello"))
	begun := time.Now()
	drain()
	if d := time.Since(begun); d < closeTimeout/2 || d > closeTimeout+3*time.Second {
		t.Errorf("the drain takes %v, want about %v", d, closeTimeout)
	}
}
