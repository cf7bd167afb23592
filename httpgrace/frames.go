package httpgrace

import "encoding/binary"

const (
	frameHeaderSize = 9

	frameHeaders      = 1 // frame types of RFC 9113 §6
	frameGoAway       = 7
	frameContinuation = 9

	flagEndHeaders = 4

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
}

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
		f.left -= n
		return n
	}
	n := copy(f.header[f.filled:], p)
	f.filled += n
	if f.filled == frameHeaderSize {
		f.filled = 0
		f.left = int(f.header[0])<<16 | int(f.header[1])<<8 | int(f.header[2])
		switch kind := f.header[3]; kind {
		case frameHeaders, frameContinuation:
			f.asked = true
			f.fields = f.header[4]&flagEndHeaders == 0
		}
	}
	return n
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
