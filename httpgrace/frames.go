package httpgrace

import "encoding/binary"

const (
	frameHeaderSize = 9

	frameHeaders      = 1 // frame types of RFC 9113 §6
	framePing         = 6
	frameGoAway       = 7
	frameContinuation = 9

	flagAck        = 1
	flagEndHeaders = 4

	maxStream = 1<<31 - 1 // beyond any that a client can open
	pingSize  = 8

	noError            = 0 // error codes of RFC 9113 §7
	inadequateSecurity = 0xc
)

// frames follows the boundaries of HTTP/2 frames in a stream of bytes.
type frames struct {
	skip   int // what remains of the preface
	header [frameHeaderSize]byte
	filled int  // of header
	left   int  // what remains of the payload
	asked  bool // a request has begun
	fields bool // a header is to be continued by the next frame
	pong   bool // this frame answers a PING
	ping   [pingSize]byte
	echoed bool // ours was answered
}

// ourPing tells the PING of the farewell from those of net/http.
var ourPing = [pingSize]byte{'f', 'a', 'r', 'e', 'w', 'e', 'l', 'l'}

// between reports whether another frame may be slipped in here.
func (f *frames) between() bool {
	return f.skip == 0 && f.filled == 0 && f.left == 0 && !f.fields
}

// pass notes that p has passed.
func (f *frames) pass(p []byte) {
	for len(p) > 0 {
		p = p[f.step(p):]
	}
}

// step takes what belongs together from p and returns how much that was.
func (f *frames) step(p []byte) int {
	if n := min(f.skip, len(p)); n > 0 {
		f.skip -= n
		return n
	}
	if n := min(f.left, len(p)); n > 0 {
		if f.pong {
			copy(f.ping[pingSize-f.left:], p[:n])
		}
		f.left -= n
		f.echoed = f.echoed || f.pong && f.left == 0 && f.ping == ourPing
		return n
	}
	n := copy(f.header[f.filled:], p)
	f.filled += n
	if f.filled == frameHeaderSize {
		f.filled = 0
		f.left = int(f.header[0])<<16 | int(f.header[1])<<8 | int(f.header[2])
		kind, flags := f.header[3], f.header[4]
		f.pong = kind == framePing && flags&flagAck != 0 && f.left == pingSize
		if kind == frameHeaders || kind == frameContinuation {
			f.asked = true
			f.fields = flags&flagEndHeaders == 0
		}
	}
	return n
}

// passOne notes that the part of p up to the first boundary within it has passed,
// or all of it, and returns how much that is.
func (f *frames) passOne(p []byte) int {
	n := 0
	for n < len(p) {
		n += f.step(p[n:])
		if f.between() {
			break
		}
	}
	return n
}

// pingFrame returns a PING, whose answer says that what was sent before it has
// arrived.
func pingFrame() []byte {
	b := make([]byte, frameHeaderSize, frameHeaderSize+pingSize)
	b[2] = pingSize
	b[3] = framePing
	return append(b, ourPing[:]...)
}

// goAwayFrame returns the frame with which an endpoint announces that it
// handles no stream beyond last.
func goAwayFrame(last, code uint32) []byte {
	b := make([]byte, frameHeaderSize, frameHeaderSize+8)
	b[2] = 8
	b[3] = frameGoAway
	b = binary.BigEndian.AppendUint32(b, last)
	return binary.BigEndian.AppendUint32(b, code)
}
