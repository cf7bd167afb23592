package load

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestFramesSurviveTheWire(t *testing.T) {
	for _, want := range []frame{
		{kind: frameData, flags: flagEndStream, stream: 1<<31 - 1, payload: []byte("abc")},
		{kind: framePing, payload: make([]byte, 8)},
		settingsFrame(settingInitialWindow, 7, settingMaxFrame, 1<<20),
		numberFrame(frameWindowUpdate, 3, 1<<30),
		{kind: frameHeaders, payload: make([]byte, defaultMaxFrame)},
	} {
		b := want.appendTo(nil)
		got, err := readFrame(bytes.NewReader(b))
		if err != nil || got.kind != want.kind || got.flags != want.flags || got.stream != want.stream || !bytes.Equal(got.payload, want.payload) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
		for _, n := range []int{0, 5, len(b) - 1} {
			_, err := readFrame(bytes.NewReader(b[:n]))
			if between := n == 0; between != errors.Is(err, io.EOF) || !between && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%d of %d bytes: %v", n, len(b), err)
			}
		}
	}
	if _, err := readFrame(bytes.NewReader(frame{payload: make([]byte, defaultMaxFrame+1)}.appendTo(nil))); err == nil {
		t.Error("a frame that is too large is accepted")
	}
}

func TestContentIsWithoutPaddingAndPriority(t *testing.T) {
	for _, test := range []struct {
		f    frame
		want string // "-": an error
	}{
		{frame{kind: frameData, payload: []byte("abc")}, "abc"},
		{frame{kind: frameData, flags: flagPadded, payload: []byte("\x02abc..")}, "abc"},
		{frame{kind: frameHeaders, flags: flagPriority, payload: []byte("12345abc")}, "abc"},
		{frame{kind: frameHeaders, flags: flagPriority | flagPadded, payload: []byte("\x0112345abc.")}, "abc"},
		{frame{kind: frameData, flags: flagPadded, payload: []byte("\x04abc")}, "-"},
		{frame{kind: frameData, flags: flagPadded}, "-"},
		{frame{kind: frameHeaders, flags: flagPriority, payload: []byte("1234")}, "-"},
	} {
		got, err := test.f.content()
		if (err != nil) != (test.want == "-") || err == nil && string(got) != test.want {
			t.Errorf("%+v: %q, %v", test.f, got, err)
		}
	}
}

func TestStatusIsRead(t *testing.T) {
	for _, test := range []struct {
		block string
		want  int // 0: an error
	}{
		{"\x88", 200},
		{"\x20\x88rest", 200},   // the table has shrunk to nothing
		{"\x8e", 500},           // the last of the static ones
		{"\x48\x03503", 503},    // a literal
		{"\x08\x03100", 100},    // not indexed
		{"\x48\x82\x6c\xff", 0}, // half of one
		{"\x48\x82" + digits("00010 00000 010100"), 0}, // "20 "
		{"\x48\x82" + digits("00010 00000 00000"), 200},
		{"\x48\x83" + digits("011011 00000 011001"), 503},
		{"\x48\x83" + digits("011011 00000 011010"), 504},
		{"\x48\x82" + digits("00001 00000 011001"), 103},
		{"\x82", 0},     // :method
		{"\x3f\x88", 0}, // a table that was not allowed
		{"", 0},
		{"\x48\x04503", 0}, // goes on after the block
		{"\x48\x0250", 0},
		{"\x48\x035x3", 0},
	} {
		got, err := status([]byte(test.block))
		if got != test.want && test.want != 0 || (err != nil) != (test.want == 0) {
			t.Errorf("% x: %d, %v, want %d", test.block, got, err, test.want)
		}
	}
}

// digits packs bits, as they stand in RFC 7541, and pads them with ones.
func digits(bits string) string {
	bits = strings.ReplaceAll(bits, " ", "")
	for len(bits)%8 != 0 {
		bits += "1"
	}
	var b strings.Builder
	for ; bits != ""; bits = bits[8:] {
		var c byte
		for _, bit := range bits[:8] {
			c = c<<1 | byte(bit-'0')
		}
		b.WriteByte(c)
	}
	return b.String()
}

func TestLongFieldsHaveALongLength(t *testing.T) {
	for n, want := range map[int]string{126: "\x7e", 127: "\x7f\x00", 128: "\x7f\x01", 1000: "\x7f\xe9\x06"} {
		text := strings.Repeat("x", n)
		if got := string(appendText(nil, text)); got != want+text {
			t.Errorf("%d bytes begin with % x, want % x", n, got[:len(got)-n], want)
		}
	}
}
