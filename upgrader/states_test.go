//go:build unix

package upgrader

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// writerFunc is a state that a function writes.
type writerFunc func(w io.Writer) error

func (f writerFunc) WriteTo(w io.Writer) (int64, error) { return 0, f(w) }

// sizedState says how large it is before it writes.
type sizedState struct {
	writerFunc
	size int64
}

func (s sizedState) StateSize() int64 { return s.size }

// text is a state that writes these strings, one by one.
func text(parts ...string) writerFunc {
	return func(w io.Writer) error {
		for _, p := range parts {
			if _, err := io.WriteString(w, p); err != nil {
				return err
			}
		}
		return nil
	}
}

// TestStatesArrive: whatever their name and size, in the next process's hands
// as they were at the time of the attempt.
func TestStatesArrive(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	want := map[string]string{
		"empty": "", "one": "x", "large": string(large), "pieces": "abc", "größe = 1\n": "odd",
		strings.Repeat("n", maxStateName): "long", ".state.": "hidden", "nul\x00": "nul",
	}
	for _, sum := range []bool{false, true} {
		t.Run(fmt.Sprint("checksum ", sum), func(t *testing.T) {
			old := newAlone(t, Options{StateChecksum: sum})
			for name, s := range want {
				must(t, old.SetState(name, Bytes(s)))
			}
			must(t, old.SetState("pieces", text("a", "", "bc")))
			must(t, old.SetState("forgotten", Bytes("x")))
			must(t, old.SetState("forgotten", nil))
			must(t, old.AddFile("file", os.Stdin))
			u := heirOf(t, old, Options{})
			for name, s := range want {
				wantState(t, u, name, s)
				wantState(t, u, name, s) // as often as it is asked for
			}
			for _, name := range []string{"forgotten", "file", "other", ""} {
				if _, err := u.State(name); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("state %q: %v, want fs.ErrNotExist", name, err)
				}
			}
			if _, err := u.File(statePrefix + "one"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a state is found as a file: %v", err)
			}
			if s := u.sockets.list(); len(s) != 1 || len(u.sockets.unclaimed()) != 1 {
				t.Errorf("sockets %v, unclaimed %q: want the file alone", s, u.sockets.unclaimed())
			}
			must(t, u.sockets.closeUnclaimed())
			if _, err := u.State("one"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after the upgrade: %v, want fs.ErrNotExist", err)
			}
		})
	}
}

func wantState(t *testing.T, u *Upgrader, name, want string) {
	t.Helper()
	s, err := u.State(name)
	if err != nil {
		t.Errorf("%.20q: %v", name, err)
		return
	}
	defer s.Close()
	var b strings.Builder
	if n, err := s.WriteTo(&b); err != nil || n != int64(len(want)) || b.String() != want {
		t.Errorf("%.20q is %.20q, %v; want %.20q", name, &b, err, want)
	}
	if string(s.Bytes()) != want || s.Len() != len(want) || s.StateSize() != int64(len(want)) {
		t.Errorf("%.20q has %d bytes, want %d", name, s.Len(), len(want))
	}
	must(t, s.Close())
	must(t, s.Close())
	if s.Len() != 0 || s.Bytes() != nil {
		t.Errorf("%d bytes after Close", s.Len())
	}
}

// TestStateIsWrittenAnewInEachAttempt, and what was replaced is not asked.
func TestStateIsWrittenAnewInEachAttempt(t *testing.T) {
	old := newAlone(t, Options{})
	must(t, old.SetState("n", writerFunc(func(io.Writer) error { t.Error("replaced, and called"); return nil })))
	n := 0
	must(t, old.SetState("n", writerFunc(func(w io.Writer) error { n++; fmt.Fprint(w, n); return nil })))
	for i := range 3 {
		wantState(t, heirOf(t, old, Options{}), "n", fmt.Sprint(i+1))
	}
}

// TestStateIsHandedOnWithoutACopy: the next process but one maps the same file.
func TestStateIsHandedOnWithoutACopy(t *testing.T) {
	first := newAlone(t, Options{StateChecksum: true})
	must(t, first.SetState("s", Bytes("text")))
	second := heirOf(t, first, Options{StateChecksum: true})
	s, err := second.State("s")
	must(t, err)
	must(t, second.sockets.closeUnclaimed()) // it is confirmed
	must(t, second.SetState("s", s))
	must(t, second.SetState("renamed", s))
	third := heirOf(t, second, Options{})
	wantState(t, third, "s", "text")
	wantState(t, third, "renamed", "text")
	again, err := third.State("s")
	must(t, err)
	defer again.Close()
	if inode(t, again.file) != inode(t, s.file) {
		t.Error("it was copied")
	}
	if again.sum == 0 || again.sum != s.sum {
		t.Errorf("its checksum was %08x and is %08x", s.sum, again.sum)
	}
	must(t, s.Close())
	_, _, err = bequestOf(second)
	wantText(t, err, `state "renamed": the State was closed`)
	wantIs(t, err, os.ErrClosed)
}

// TestStateOfTheFirstProcess is like one that was handed on.
func TestStateOfTheFirstProcess(t *testing.T) {
	before := openFDs(t)
	s, err := NewState(text("te", "xt"))
	must(t, err)
	if string(s.Bytes()) != "text" {
		t.Errorf("%q", s.Bytes())
	}
	u := newAlone(t, Options{})
	must(t, u.SetState("s", s))
	heir := heirOf(t, u, Options{})
	wantState(t, heir, "s", "text")
	next, err := heir.State("s")
	must(t, err)
	if inode(t, next.file) != inode(t, s.file) {
		t.Error("it was copied")
	}
	must(t, next.Close())
	must(t, heir.sockets.closeUnclaimed())
	must(t, s.Close())
	broken := errors.New("the cache is locked")
	_, err = NewState(writerFunc(func(io.Writer) error { return broken }))
	wantIs(t, err, broken)
	wantNoMoreFDs(t, before)
}

// TestChecksumIsAddedToWhatHadNone, when it is handed on.
func TestChecksumIsAddedToWhatHadNone(t *testing.T) {
	first := newAlone(t, Options{})
	must(t, first.SetState("s", Bytes("text")))
	second := heirOf(t, first, Options{StateChecksum: true})
	s, err := second.State("s")
	must(t, err)
	must(t, second.sockets.closeUnclaimed()) // it is confirmed
	defer s.Close()
	must(t, second.sockets.closeUnclaimed())
	must(t, second.SetState("s", s))
	third, err := heirOf(t, second, Options{}).State("s")
	must(t, err)
	defer third.Close()
	if s.sum == 0 || third.sum != s.sum {
		t.Errorf("checksums %08x, %08x", s.sum, third.sum)
	}
}

func wantIs(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%v, want %v", err, want)
	}
}

func TestNamesOfStates(t *testing.T) {
	u := newAlone(t, Options{})
	for _, name := range []string{"", "\xff", strings.Repeat("n", maxStateName+1), strings.Repeat("n", maxName+1)} {
		wantIs(t, u.SetState(name, Bytes("x")), ErrName)
		wantIs(t, u.OnStateDelta(name, func([]byte) error { return nil }), ErrName)
	}
	must(t, u.SetState("main", Bytes("x")))
	listenAs(t, u, "main", "tcp", "127.0.0.1:0") // another kind of name
	_, err := u.Listen(t.Context(), statePrefix+"main", "tcp", "127.0.0.1:0")
	wantIs(t, err, ErrName)
	wantIs(t, u.AddFile(statePrefix+"main", os.Stdin), ErrName)
	wantState(t, heirOf(t, u, Options{}), "main", "x")
	must(t, u.Ready())
	u.Stop()
	wantIs(t, u.SetState("main", nil), ErrStopped)
	wantIs(t, u.OnStateDelta("main", nil), ErrStopped)
}

// TestStateThatCannotBeWritten is named, nothing is left of it, and the next
// attempt works.
func TestStateThatCannotBeWritten(t *testing.T) {
	broken := errors.New("the cache is locked")
	fails := func(io.Writer) error { return broken }
	tests := map[string]struct {
		data io.WriterTo
		want string
	}{
		"an error":        {writerFunc(fails), "the cache is locked"},
		"a panic":         {writerFunc(func(io.Writer) error { panic("at the disco") }), "it panicked: at the disco"},
		"fewer bytes":     {sizedState{text("abc"), 4}, "it wrote 3 bytes, its StateSize was 4"},
		"more bytes":      {sizedState{text("abc", "de"), 4}, "it writes more than the 4 bytes of its StateSize"},
		"bytes, not none": {sizedState{text("a"), 0}, "it writes more than the 0 bytes of its StateSize"},
		"a negative size": {sizedState{text("a"), -1}, "its StateSize is -1"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			u := newAlone(t, Options{})
			must(t, u.SetState("before", Bytes("b")))
			must(t, u.SetState("cache", tt.data))
			before := openFDs(t)
			meta, files, err := bequestOf(u)
			if meta != nil || files != nil {
				t.Errorf("%v, %v", meta, files)
			}
			wantText(t, err, `state "cache": `+tt.want)
			if name == "an error" {
				wantIs(t, err, broken)
			}
			wantNoMoreFDs(t, before)
			must(t, u.SetState("cache", Bytes("c")))
			wantState(t, heirOf(t, u, Options{}), "cache", "c")
		})
	}
}

// TestErrorOfAWriteIsNotLost although the callback does not look at it.
func TestErrorOfAWriteIsNotLost(t *testing.T) {
	u := newAlone(t, Options{})
	must(t, u.SetState("s", sizedState{func(w io.Writer) error {
		for range 10 {
			_, _ = w.Write(make([]byte, stateBuffer))
		}
		return nil
	}, 1}))
	_, _, err := bequestOf(u)
	wantText(t, err, "it writes more than the 1 bytes")
}

// ---- a predecessor that lies ----

// memory returns a sealed file.
func memory(t *testing.T, content string) *os.File {
	t.Helper()
	f, err := fd.NewMemory("state")
	must(t, err)
	t.Cleanup(func() { f.Close() })
	_, err = f.WriteString(content)
	must(t, err)
	must(t, fd.Seal(f))
	return f
}

// inheritsState describes f, which was inherited, as a manifest does.
func inheritsState(t *testing.T, f *os.File, m wire.Socket) (*Upgrader, error) {
	t.Helper()
	u := newUpgrader(Options{})
	dup, err := fd.Dup(f, m.Name)
	must(t, err)
	must(t, u.sockets.park(&socket{Socket: wire.Socket{Name: m.Name}, parked: dup, inherited: true}))
	t.Cleanup(func() { _ = u.sockets.closeUnclaimed() })
	return u, u.sockets.describe([]wire.Socket{m})
}

func TestStateThatIsNotWhatTheManifestSays(t *testing.T) {
	pipe, other, err := os.Pipe()
	must(t, err)
	defer pipe.Close()
	defer other.Close()
	says := func(name string, size int64) wire.Socket {
		return wire.Socket{Name: statePrefix + "s", Kind: kindFile, State: &wire.State{Name: name, Size: size}}
	}
	tests := map[string]struct {
		file *os.File
		says wire.Socket
		want string
	}{
		"larger":       {memory(t, "text"), says("s", 3), `says that the state "s" has 3 bytes, it has 4`},
		"smaller":      {memory(t, "text"), says("s", 1<<40), "has 1099511627776 bytes, it has 4"},
		"negative":     {memory(t, "text"), says("s", -4), "has -4 bytes, it has 4"},
		"another name": {memory(t, "text"), says("t", 4), `calls the state ".state.s" "t"`},
		"a pipe":       {pipe, says("s", 0), "it is no regular file"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := inheritsState(t, tt.file, tt.says)
			wantText(t, err, tt.want)
		})
	}
	u, err := inheritsState(t, memory(t, "text"), says("s", 4))
	must(t, err)
	wantState(t, u, "s", "text")
}

func TestChecksumIsCompared(t *testing.T) {
	m := wire.Socket{Name: statePrefix + "s", Kind: kindFile, State: &wire.State{Name: "s", Size: 9, Sum: 0xe3069283}}
	u, err := inheritsState(t, memory(t, "123456789"), m)
	must(t, err)
	wantState(t, u, "s", "123456789") // that is its checksum
	must(t, u.sockets.closeUnclaimed())
	f := memory(t, "123456780")
	before := openFDs(t)
	u, err = inheritsState(t, f, m)
	must(t, err)
	_, err = u.sockets.state("s")
	wantText(t, err, "the checksum of its 9 bytes is ")
	wantText(t, err, ", the predecessor says e3069283")
	must(t, u.sockets.closeUnclaimed())
	wantNoMoreFDs(t, before)
}

// TestStateWithoutAManifest: the predecessor has died before it sent one.
func TestStateWithoutAManifest(t *testing.T) {
	u := newUpgrader(Options{})
	dup, err := fd.Dup(memory(t, "text"), "")
	must(t, err)
	must(t, u.sockets.park(&socket{Socket: wire.Socket{Name: statePrefix + "s"}, parked: dup, inherited: true}))
	wantState(t, u, "s", "text")
	if len(u.sockets.unclaimed())+len(u.sockets.list()) != 0 {
		t.Error("it counts as a socket")
	}
	must(t, u.sockets.closeUnclaimed())
}
