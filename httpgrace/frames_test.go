package httpgrace

import (
	"bytes"
	"testing"
)

// Wherever the stream is cut, the boundaries are the same.
func TestFramesAreFollowedThroughAnyCuts(t *testing.T) {
	const (
		continued    = "\x00\x00\x02\x01\x00\x00\x00\x00\x01ab"
		continuation = "\x00\x00\x01\x09\x04\x00\x00\x00\x01c"
		data         = "\x00\x00\x05\x00\x01\x00\x00\x00\x01hello"
	)
	parts := []string{clientPreface, emptySettings, continued, continuation, data, headersFrame(3)}
	boundaries := map[int]bool{} // where a frame may be slipped in
	stream := ""
	for _, p := range parts {
		stream += p
		boundaries[len(stream)] = p != continued
	}
	for size := 1; size <= len(stream); size++ {
		f := frames{skip: len(clientPreface)}
		for at := 0; at < len(stream); {
			n := min(size, len(stream)-at)
			f.pass([]byte(stream[at : at+n]))
			at += n
			if f.between() != boundaries[at] {
				t.Fatalf("pieces of %d: after %d bytes between is %v", size, at, f.between())
			}
			if asked := at >= len(clientPreface+emptySettings)+frameHeaderSize; f.asked != asked {
				t.Fatalf("pieces of %d: after %d bytes asked is %v", size, at, f.asked)
			}
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte(emptySettings+headersFrame(1)), 3)
	f.Fuzz(func(t *testing.T, stream []byte, cut int) {
		var whole, pieces frames
		whole.pass(stream)
		cut = min(max(cut, 0), len(stream))
		pieces.pass(stream[:cut])
		pieces.pass(stream[cut:])
		pieces.header, whole.header = [frameHeaderSize]byte{}, [frameHeaderSize]byte{}
		if whole != pieces {
			t.Errorf("%+v, in two pieces %+v", whole, pieces)
		}
	})
}

func TestGoAwayFrame(t *testing.T) {
	want := []byte{0, 0, 8, frameGoAway, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, inadequateSecurity}
	if got := goAwayFrame(1<<31-1, inadequateSecurity); !bytes.Equal(got, want) {
		t.Errorf("%x", got)
	}
}
