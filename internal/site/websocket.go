package site

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-handover/handover/httpgrace"
)

// The opcodes of RFC 6455, section 5.2; those from 8 on are control frames.
const (
	opContinuation = 0x0
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xA
)

const (
	goingAway     = 1001
	protocolError = 1002
	messageTooBig = 1009

	maxFrame     = 1 << 20
	closeTimeout = 5 * time.Second // for the client's half of the closing handshake
)

// webSocket echoes messages frame by frame. When this process drains, it asks
// the client to connect again, to the next process.
func webSocket(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Sec-Websocket-Key")
	if key == "" || !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		w.Header().Set("Upgrade", "websocket")
		http.Error(w, "this is a WebSocket", http.StatusUpgradeRequired)
		return
	}
	nc, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError) // HTTP/2
		return
	}
	defer nc.Close()
	digest := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(digest[:]))
	if rw.Flush() != nil {
		return
	}

	s := &socket{conn: nc, in: rw.Reader}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-httpgrace.Draining(r.Context()):
			s.close(goingAway)
		case <-ended:
		}
	}()
	s.echo()
}

// socket is one WebSocket. Two goroutines write to it.
type socket struct {
	conn net.Conn
	in   *bufio.Reader

	mu     sync.Mutex
	closed bool // a close frame was sent, which is the last frame
}

// echo returns when the closing handshake is over, or the connection is gone.
func (s *socket) echo() {
	for {
		head, payload, err := s.read()
		var code closeError
		switch {
		case errors.As(err, &code):
			s.close(int(code))
			return
		case err != nil:
			return
		case head&0xF == opClose:
			s.write(head, payload)
			return
		case head&0xF == opPing:
			s.write(0x80|opPong, payload)
		case head&0xF == opPong:
		default:
			s.write(head, payload) // as it was fragmented by the client
		}
	}
}

// closeError is what a client did wrong, as a close code.
type closeError int

func (e closeError) Error() string { return fmt.Sprintf("close code %d", int(e)) }

// read returns a frame's first byte, which is FIN and the opcode, and its
// payload.
func (s *socket) read() (head byte, payload []byte, err error) {
	var b [8]byte
	if _, err := io.ReadFull(s.in, b[:2]); err != nil {
		return 0, nil, err
	}
	head = b[0]
	masked, n := b[1]&0x80 != 0, uint64(b[1]&0x7F)
	op, control := head&0xF, head&0x8 != 0
	switch {
	case head&0x70 != 0, !masked, op > opPong, op > opBinary && op < opClose, control && (head&0x80 == 0 || n > 125):
		return 0, nil, closeError(protocolError)
	case n == 126:
		_, err = io.ReadFull(s.in, b[:2])
		n = uint64(binary.BigEndian.Uint16(b[:]))
	case n == 127:
		_, err = io.ReadFull(s.in, b[:8])
		n = binary.BigEndian.Uint64(b[:])
	}
	if n > maxFrame {
		return 0, nil, errors.Join(err, closeError(messageTooBig))
	}
	var mask [4]byte
	payload = make([]byte, n)
	for _, part := range [][]byte{mask[:], payload} {
		if err == nil {
			_, err = io.ReadFull(s.in, part)
		}
	}
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	return head, payload, err
}

// write sends one frame, unless the last one was sent. An error is seen by
// read too.
func (s *socket) write(head byte, payload []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = head&0xF == opClose
	frame := []byte{head}
	switch n := len(payload); {
	case n <= 125:
		frame = append(frame, byte(n))
	case n <= 1<<16-1:
		frame = binary.BigEndian.AppendUint16(append(frame, 126), uint16(n))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, 127), uint64(n))
	}
	_, _ = s.conn.Write(append(frame, payload...))
}

// close begins the closing handshake; the client's answer ends echo.
func (s *socket) close(code int) {
	_ = s.conn.SetReadDeadline(time.Now().Add(closeTimeout)) // fails if the connection is gone
	s.write(0x80|opClose, binary.BigEndian.AppendUint16(nil, uint16(code)))
}
