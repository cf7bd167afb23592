package load

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// The first bytes of frames of RFC 6455, section 5.2: FIN and the opcode.
const (
	wsText  = 0x81
	wsClose = 0x88
	wsPing  = 0x89
	wsPong  = 0x8A
)

const wsGoingAway = 1001

// webSocket sends messages that are echoed. When the server goes away, by the
// closing handshake, it connects again: that is no failure.
type webSocket struct {
	link
	// broken is how the connection was lost between two messages. The next
	// one, which would have gone there, fails with it.
	broken error
}

func (w *webSocket) turn(ctx context.Context, n, _ int) {
	start := time.Now()
	w.record(ctx, start, 0, w.send(ctx, fmt.Sprintf("client %d message %d", w.id, n)))
}

// send makes one attempt. A message that the server's close has crossed was
// told to be without an answer: it goes to the next connection.
func (w *webSocket) send(ctx context.Context, message string) error {
	if err := w.broken; err != nil {
		w.broken = nil
		return err
	}
	for begun := time.Now(); ; {
		err := w.connect(ctx)
		if err == nil {
			err = w.exchange(message)
		}
		if err != nil {
			w.close()
		}
		if !errors.Is(err, errGoingAway) || time.Since(begun) > w.load.cfg.Timeout {
			return err
		}
		w.count(&w.told, 1)
	}
}

// connect opens a WebSocket if there is none.
func (w *webSocket) connect(ctx context.Context) error {
	if w.conn != nil {
		return nil
	}
	if err := w.dial(ctx); err != nil {
		return err
	}
	if err := w.conn.begin(w.load.cfg.Timeout); err != nil {
		return err
	}
	key := base64.StdEncoding.EncodeToString([]byte(rand.Text())[:16])
	head := w.header("GET", "/ws", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: "+key)
	if err := w.conn.write(head, 0, 0); err != nil {
		return &phaseError{phase: "write", err: err}
	}
	_, err := w.conn.receive(request{
		status: http.StatusSwitchingProtocols,
		check:  func(io.Reader) error { return nil }, // the frames are not in the body
		also:   header("Sec-Websocket-Accept", accept(key)),
	})
	return err
}

// accept is what a server makes of a key (RFC 6455, section 4.2.2).
func accept(key string) string {
	digest := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(digest[:])
}

func (w *webSocket) exchange(message string) error {
	if err := w.conn.expect(w.load.cfg.Timeout); err != nil {
		return err
	}
	if err := w.write(wsText, []byte(message)); err != nil {
		return err
	}
	got, err := w.message()
	switch {
	case errors.Is(err, errGoingAway):
		return err
	case err == nil && got != message:
		err = wrong(got, message)
	}
	return w.conn.failed(err)
}

// errGoingAway is a closing handshake that the server has begun with 1001, and
// that is complete.
var errGoingAway = errors.New("the server goes away")

// message returns the next message, and does what control frames ask for.
func (w *webSocket) message() (string, error) {
	for {
		head, payload, err := readWSFrame(w.conn.responses)
		switch {
		case err != nil:
			return "", err
		case head == wsText:
			return string(payload), nil
		case head == wsPing:
			if err := w.write(wsPong, payload); err != nil {
				return "", err
			}
		case head == wsClose:
			return "", w.closing(payload)
		case head != wsPong:
			return "", bodyError(fmt.Sprintf("frame %#x", head))
		}
	}
}

// closing answers the server's close frame. The server ends the connection.
func (w *webSocket) closing(payload []byte) error {
	code := 0
	if len(payload) >= 2 {
		code = int(binary.BigEndian.Uint16(payload))
	}
	if code != wsGoingAway {
		return bodyError(fmt.Sprintf("close code %d, want %d", code, wsGoingAway))
	}
	if err := w.write(wsClose, payload[:2]); err != nil {
		return err
	}
	if _, err := w.conn.responses.ReadByte(); err == nil {
		return bodyError("bytes after the close frame")
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	return errGoingAway
}

// write sends a frame with the mask zero, which is as good as any here.
func (w *webSocket) write(head byte, payload []byte) error {
	frame := append([]byte{head, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...)
	if _, err := w.conn.Write(frame); err != nil {
		return &phaseError{phase: "write", err: err}
	}
	return nil
}

// readWSFrame reads a frame with up to 125 bytes, as all are that are sent here.
func readWSFrame(r *bufio.Reader) (head byte, payload []byte, err error) {
	var b [2]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, nil, err
	}
	if b[1] > 125 {
		return 0, nil, bodyError(fmt.Sprintf("length %#x of a frame", b[1]))
	}
	payload = make([]byte, b[1])
	_, err = io.ReadFull(r, payload)
	return b[0], payload, err
}

// idle listens: the server may go away, and say so.
func (w *webSocket) idle(starting context.Context, d time.Duration) {
	if w.conn == nil || d <= 0 {
		rest(starting, d)
		return
	}
	w.conn.got = 0
	for until := time.Now().Add(d); w.conn != nil && starting.Err() == nil && time.Until(until) > 0; {
		switch alive := w.conn.idle(starting, time.Until(until)); {
		case !alive:
			w.lose(cmp.Or(w.conn.broken, io.EOF))
		case w.conn.responses.Buffered() > 0:
			w.lose(w.control())
		}
	}
}

// lose gives the connection up if there is a reason.
func (w *webSocket) lose(err error) {
	switch {
	case err == nil:
		return
	case errors.Is(err, errGoingAway):
		w.count(&w.closed, 1)
	default:
		w.broken = w.conn.failed(err)
	}
	w.close()
}

// control reads what was said without being asked: no message.
func (w *webSocket) control() error {
	_ = w.conn.SetDeadline(time.Now().Add(w.load.cfg.Timeout)) // the reading fails too
	head, payload, err := readWSFrame(w.conn.responses)
	switch {
	case err != nil || head == wsPong:
		return err
	case head == wsPing:
		return w.write(wsPong, payload)
	case head == wsClose:
		return w.closing(payload)
	}
	return bodyError(fmt.Sprintf("frame %#x, which was not asked for", head))
}
