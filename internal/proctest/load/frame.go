package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The frames of RFC 9113, section 6, and their flags.
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	frameReset        = 0x3
	frameSettings     = 0x4
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9

	flagEndStream  = 0x1
	flagAck        = 0x1 // of SETTINGS and PING
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

const (
	settingHeaderTableSize = 0x1
	settingEnablePush      = 0x2
	settingInitialWindow   = 0x4
	settingMaxFrame        = 0x5

	defaultWindow   = 1<<16 - 1
	defaultMaxFrame = 1 << 14

	errorCancel        = 0x8
	errorRefusedStream = 0x7
)

// preface is what a client says first, before its SETTINGS.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// frame is one frame of HTTP/2.
type frame struct {
	kind, flags byte
	stream      uint32
	payload     []byte
}

func (f frame) has(flag byte) bool { return f.flags&flag != 0 }

// appendTo appends the frame as it is written.
func (f frame) appendTo(b []byte) []byte {
	n := len(f.payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), f.kind, f.flags)
	b = binary.BigEndian.AppendUint32(b, f.stream)
	return append(b, f.payload...)
}

// readFrame reads one frame. The error is io.EOF only between two of them.
func readFrame(r io.Reader) (frame, error) {
	var head [9]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	n := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
	if n > defaultMaxFrame {
		return frame{}, fmt.Errorf("frame of %d bytes, more than was allowed", n)
	}
	f := frame{head[3], head[4], binary.BigEndian.Uint32(head[5:]) & (1<<31 - 1), make([]byte, n)}
	if _, err := io.ReadFull(r, f.payload); err != nil {
		return frame{}, errors.Join(io.ErrUnexpectedEOF, err)
	}
	return f, nil
}

// content is the payload of DATA or HEADERS without padding and priority.
func (f frame) content() ([]byte, error) {
	p, padding := f.payload, 0
	if f.has(flagPadded) {
		if len(p) == 0 {
			return nil, errFrame
		}
		padding, p = int(p[0]), p[1:]
	}
	if f.kind == frameHeaders && f.has(flagPriority) {
		if len(p) < 5 {
			return nil, errFrame
		}
		p = p[5:]
	}
	if padding > len(p) {
		return nil, errFrame
	}
	return p[:len(p)-padding], nil
}

// errFrame is a frame that is not as the RFC says.
var errFrame = errors.New("malformed frame of HTTP/2")

// settings calls set for each setting of a SETTINGS frame.
func (f frame) settings(set func(id uint16, value uint32)) error {
	if len(f.payload)%6 != 0 {
		return errFrame
	}
	for p := f.payload; len(p) > 0; p = p[6:] {
		set(binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:]))
	}
	return nil
}

// number is the payload of WINDOW_UPDATE and RST_STREAM, and the start of that
// of GOAWAY.
func (f frame) number() (uint32, error) {
	if len(f.payload) < 4 {
		return 0, errFrame
	}
	return binary.BigEndian.Uint32(f.payload), nil
}

func settingsFrame(pairs ...uint32) frame {
	f := frame{kind: frameSettings}
	for i := 0; i < len(pairs); i += 2 {
		f.payload = binary.BigEndian.AppendUint16(f.payload, uint16(pairs[i]))
		f.payload = binary.BigEndian.AppendUint32(f.payload, pairs[i+1])
	}
	return f
}

func numberFrame(kind byte, stream, n uint32) frame {
	return frame{kind: kind, stream: stream, payload: binary.BigEndian.AppendUint32(nil, n)}
}
