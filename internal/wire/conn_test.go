//go:build unix

package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// streams returns the two ends of a connected unix stream socket.
func streams(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	return stream(t, fds[0]), stream(t, fds[1])
}

func stream(t *testing.T, n int) *net.UnixConn {
	t.Helper()
	syscall.CloseOnExec(n)
	f := os.NewFile(uintptr(n), "stream")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}

func conns(t *testing.T) (a, b *Conn) {
	t.Helper()
	x, y := streams(t)
	return NewConn(x), NewConn(y)
}

func send(t *testing.T, c *Conn, m Message, rights ...int) {
	t.Helper()
	if err := c.Send(m, rights...); err != nil {
		t.Fatal(err)
	}
}

func wantMessage(t *testing.T, c *Conn, want Message) []*os.File {
	t.Helper()
	got, files, err := c.Receive()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("received %#v, %v; want %#v", got, err, want)
	}
	return files
}

func wantError(t *testing.T, c *Conn, want error) {
	t.Helper()
	if m, _, err := c.Receive(); !errors.Is(err, want) {
		t.Fatalf("received %#v, %v; want %v", m, err, want)
	}
}

// framed returns the frame around text.
func framed(text string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
}

func TestEveryMessageArrives(t *testing.T) {
	a, b := conns(t)
	go func() {
		defer a.Close()
		for _, m := range golden {
			if takes(m) > 0 {
				continue
			}
			if err := a.Send(m); err != nil {
				t.Error(err)
			}
		}
	}()
	for _, m := range golden {
		if takes(m) == 0 {
			wantMessage(t, b, m)
		}
	}
	wantError(t, b, io.EOF)
	wantError(t, b, io.EOF)
}

func TestFramesMayArriveInAnyPieces(t *testing.T) {
	var all []byte
	want := append([]Message{Failed{strings.Repeat("panic: ", 9000)}, manifestOf(300)}, golden[:5]...)
	for _, m := range want {
		b, err := frame(m)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	for range 20 {
		a, b := streams(t)
		go writeInPieces(a, all)
		c := NewConn(b)
		for _, m := range want {
			wantMessage(t, c, m)
		}
		wantError(t, c, io.EOF)
		c.Close()
	}
}

func writeInPieces(c *net.UnixConn, b []byte) {
	defer c.Close()
	for len(b) > 0 {
		n := 1 + rand.IntN(min(len(b), 1<<rand.IntN(18)))
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
		b = b[n:]
	}
}

func TestReceiveRefusesBadFrames(t *testing.T) {
	ready := framed(`{"type":"ready"}`)
	for name, tt := range map[string]struct {
		bytes []byte
		want  string
	}{
		"nothing":        {nil, "EOF"},
		"half a header":  {ready[:2], "unexpected EOF"},
		"header alone":   {ready[:4], "unexpected EOF"},
		"half a frame":   {ready[:9], "unexpected EOF"},
		"no length":      {[]byte{0, 0, 0, 0}, "frame of 0 bytes: expected 1 to 1048576"},
		"too long":       {[]byte{0, 16, 0, 1}, "frame of 1048577 bytes: expected 1 to 1048576"},
		"somebody else":  {[]byte("GET / HTTP/1.1\r\n"), "frame of 1195725856 bytes: expected 1 to 1048576"},
		"no JSON":        {framed("ready"), `expected {"type":…,"body":{…}}`},
		"unknown":        {framed(`{"type":"teleport"}`), `unknown message type "teleport"`},
		"no descriptor":  {framed(`{"type":"connection","body":{"id":1}}`), "connection message with 0 descriptors: expected 1"},
		"longest length": {[]byte{0, 16, 0, 0, '{'}, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := streams(t)
			if _, err := a.Write(tt.bytes); err != nil {
				t.Fatal(err)
			}
			a.Close()
			m, files, err := NewConn(b).Receive()
			if err == nil || m != nil || files != nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("received %#v, %v, %v; want an error with %q", m, files, err, tt.want)
			}
		})
	}
}

func TestReceiveGoesOnAfterAMessageThatIsNotUnderstood(t *testing.T) {
	a, b := streams(t)
	c := NewConn(b)
	for _, text := range []string{`{"type":"teleport"}`, "ready", `{"type":"connection"}`} {
		a.Write(append(framed(text), framed(`{"type":"ready"}`)...))
		if m, _, err := c.Receive(); err == nil {
			t.Errorf("%s: received %#v", text, m)
		}
		wantMessage(t, c, Ready{})
	}
}

func TestReceiveStopsAfterABadLength(t *testing.T) {
	a, b := streams(t)
	c := NewConn(b)
	a.Write(append(make([]byte, 4), framed(`{"type":"ready"}`)...))
	_, _, first := c.Receive()
	_, _, second := c.Receive()
	if first == nil || second == nil || first.Error() != second.Error() {
		t.Errorf("%v, then %v: the stream cannot be in step any more", first, second)
	}
}

func TestAnnouncedLengthCostsNoMemory(t *testing.T) {
	a, b := streams(t)
	a.Write([]byte{0, 16, 0, 0, '{'})
	a.Close()
	c := NewConn(b)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	wantError(t, c, io.ErrUnexpectedEOF)
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 128<<10 {
		t.Errorf("%d bytes were allocated for a frame of which 1 byte arrived", grown)
	}
}

// A peer that dies with our messages unread resets the stream. That is its
// end, not a fault, and what it had sent before still counts.
func TestDeathOfAPeerThatDidNotReadIsEOF(t *testing.T) {
	a, b := conns(t)
	send(t, b, Commit{})
	send(t, a, Ready{})
	a.Close()
	wantMessage(t, b, Ready{})
	if m, _, err := b.Receive(); err != io.EOF { //nolint:errorlint // callers may compare
		t.Errorf("received %#v, %v; want io.EOF itself", m, err)
	}
}

func TestCloseInterruptsReceive(t *testing.T) {
	a, _ := conns(t)
	received := make(chan error, 1)
	go func() {
		_, _, err := a.Receive()
		received <- err
	}()
	a.Close()
	if err := <-received; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Receive returned %v; want net.ErrClosed", err)
	}
	if err := a.Send(Ready{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Send returned %v; want net.ErrClosed", err)
	}
}

func TestCloseReadKeepsWhatWasSentAndRefusesTheRest(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the BSDs discard what was sent")
	}
	a, b := conns(t)
	send(t, a, Ready{})
	send(t, a, Stopping{})
	if err := b.CloseRead(); err != nil {
		t.Fatal(err)
	}
	if err := a.Send(Serving{}); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("Send to a peer that has closed its reading side: %v; want EPIPE", err)
	}
	wantMessage(t, b, Ready{})
	wantMessage(t, b, Stopping{})
	wantError(t, b, io.EOF)

	send(t, b, Confirm{})
	wantMessage(t, a, Confirm{})
}

func TestConcurrentSendsAreWhole(t *testing.T) {
	const senders, each = 8, 50
	a, b := conns(t)
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				if err := a.Send(Refused{uint64(s), fmt.Sprint(i, strings.Repeat("x", 9000))}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	next := make([]int, senders)
	for range senders * each {
		m, _, err := b.Receive()
		if err != nil {
			t.Fatal(err)
		}
		r := m.(Refused)
		if want := fmt.Sprint(next[r.ID], strings.Repeat("x", 9000)); r.Reason != want {
			t.Fatalf("sender %d: got %.20s, want %.20s", r.ID, r.Reason, want)
		}
		next[r.ID]++
	}
	wg.Wait()
}

func TestSendToAPeerThatDoesNotReadBreaksTheConn(t *testing.T) {
	a, b := conns(t)
	a.sendTimeout = 50 * time.Millisecond
	var err error
	for err == nil {
		err = a.Send(Failed{strings.Repeat("x", maxText)})
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Send returned %v; want os.ErrDeadlineExceeded", err)
	}

	go func() { // room again, but the stream may have been cut
		for {
			if _, _, err := b.Receive(); err != nil {
				return
			}
		}
	}()
	if err := a.Send(Ready{}); err == nil || !strings.Contains(err.Error(), "channel is broken") {
		t.Errorf("Send on a broken Conn returned %v", err)
	}
}

func TestSendRefusesBeforeItWrites(t *testing.T) {
	a, b := conns(t)
	for name, err := range map[string]error{
		"too large":           a.Send(manifestOf(4000)),
		"ready with one":      a.Send(Ready{}, 0),
		"connection with 0":   a.Send(Connection{ID: 1}),
		"connection with 2":   a.Send(Connection{ID: 1}, 0, 0),
		"descriptor not open": a.Send(Connection{ID: 1}, 1<<20),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	send(t, a, Ready{})
	wantMessage(t, b, Ready{})
}

// pipeFD returns a descriptor for reading text, to be sent and then closed.
func pipeFD(t *testing.T, text string) int {
	t.Helper()
	var fds [2]int
	if err := syscall.Pipe(fds[:]); err != nil {
		t.Fatal(err)
	}
	syscall.CloseOnExec(fds[0])
	defer syscall.Close(fds[1])
	if _, err := syscall.Write(fds[1], []byte(text)); err != nil {
		t.Fatal(err)
	}
	return fds[0]
}

func sendPipe(t *testing.T, c *Conn, m Message, text string) {
	t.Helper()
	n := pipeFD(t, text)
	defer syscall.Close(n)
	send(t, c, m, n)
}

func wantPipe(t *testing.T, files []*os.File, want string) {
	t.Helper()
	if len(files) != 1 {
		t.Fatalf("%d files came, want 1", len(files))
	}
	defer files[0].Close()
	if got, err := io.ReadAll(files[0]); err != nil || string(got) != want {
		t.Fatalf("the descriptor reads %q, %v; want %q", got, err, want)
	}
}

func TestDescriptorsStayWithTheirMessages(t *testing.T) {
	a, b := conns(t)
	const n = 200
	go func() {
		defer a.Close()
		for i := range n {
			for range rand.IntN(3) {
				a.Send(Progress{fmt.Sprint(i)})
			}
			sendPipe(t, a, Connection{uint64(i), "http"}, fmt.Sprint("pipe ", i))
		}
	}()
	for i := 0; i < n; {
		m, files, err := b.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if m != (Connection{uint64(i), "http"}) {
			if m != (Progress{fmt.Sprint(i)}) || files != nil {
				t.Fatalf("%d: received %#v with %v", i, m, files)
			}
			continue
		}
		wantPipe(t, files, fmt.Sprint("pipe ", i))
		i++
	}
	wantError(t, b, io.EOF)
}

// A frame that the socket has no room for is written in several pieces, and
// the descriptor must go with the first of them alone.
func TestDescriptorOfALongFrameIsSentOnce(t *testing.T) {
	a, b := conns(t)
	long := Connection{1, strings.Repeat("x", MaxFrame-100)}
	go func() {
		sendPipe(t, a, long, "one")
		sendPipe(t, a, Connection{2, ""}, "two")
		a.Close()
	}()
	wantPipe(t, wantMessage(t, b, long), "one")
	wantPipe(t, wantMessage(t, b, Connection{2, ""}), "two")
	wantError(t, b, io.EOF)
}

func TestReceivedDescriptorIsCloseOnExecAndKeepsItsMode(t *testing.T) {
	for _, nonblock := range []bool{false, true} {
		a, b := conns(t)
		n := pipeFD(t, "")
		defer syscall.Close(n)
		if err := syscall.SetNonblock(n, nonblock); err != nil {
			t.Fatal(err)
		}
		send(t, a, Connection{}, n)
		f := wantMessage(t, b, Connection{})[0]
		defer f.Close()
		if flags := fcntl(t, f, syscall.F_GETFD); flags&syscall.FD_CLOEXEC == 0 {
			t.Error("the received descriptor is not close-on-exec")
		}
		if flags := fcntl(t, f, syscall.F_GETFL); flags&syscall.O_NONBLOCK != 0 != nonblock {
			t.Errorf("O_NONBLOCK was %v and has changed", nonblock)
		}
	}
}

func fcntl(t *testing.T, f *os.File, cmd int) int {
	t.Helper()
	rc, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var flags uintptr
	var errno syscall.Errno
	rc.Control(func(fd uintptr) {
		flags, _, errno = syscall.Syscall(syscall.SYS_FCNTL, fd, uintptr(cmd), 0)
	})
	if errno != 0 {
		t.Fatal(errno)
	}
	return int(flags)
}

func TestUnexpectedDescriptorsAreClosed(t *testing.T) {
	connection := string(framed(`{"type":"connection","body":{"id":1}}`))
	for name, tt := range map[string]struct {
		bytes string
		fds   int
	}{
		"message that takes none": {string(framed(`{"type":"ready"}`)), 1},
		"one too many":            {connection, 2},
		"as many as can be":       {connection, MaxRights},
		"no message":              {string(framed("ready")), 1},
		"unknown type":            {string(framed(`{"type":"teleport"}`)), 3},
		"bad length":              {"\x00\x00\x00\x00", 1},
		"cut frame":               {connection[:12], 1},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := streams(t)
			c := NewConn(b)
			n := pipeFD(t, "")
			defer syscall.Close(n)
			before := openFDs(t)
			rights := syscall.UnixRights(bytesOf(n, tt.fds)...)
			if _, _, err := a.WriteMsgUnix([]byte(tt.bytes), rights, nil); err != nil {
				t.Fatal(err)
			}
			a.CloseWrite()
			if m, files, err := c.Receive(); err == nil || files != nil {
				t.Errorf("received %#v with %d files", m, len(files))
			}
			if after := openFDs(t); after != before {
				t.Errorf("%d descriptors are open, %d were", after, before)
			}
		})
	}
}

func bytesOf(n, count int) []int {
	fds := make([]int, count)
	for i := range fds {
		fds[i] = n
	}
	return fds
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("open descriptors cannot be counted here:", err)
	}
	return len(entries)
}

func TestThousandConnectionsLeakNothing(t *testing.T) {
	a, b := conns(t)
	n := pipeFD(t, "")
	defer syscall.Close(n)
	before := openFDs(t)
	for i := range 1000 {
		send(t, a, Connection{ID: uint64(i)}, n)
		wantMessage(t, b, Connection{ID: uint64(i)})[0].Close()
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

// TestDroppedDescriptorComesAsNone runs in a process of its own, because it
// fills the table of descriptors.
func TestDroppedDescriptorComesAsNone(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("what a process at its limit receives differs")
	}
	if os.Getenv("WIRE_TEST_AT_LIMIT") == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), "WIRE_TEST_AT_LIMIT=1")
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	a, b := conns(t)
	for i, text := range []string{"kept", "dropped", "dropped too", "kept again"} {
		if i > 0 {
			send(t, a, Progress{text})
		}
		sendPipe(t, a, Connection{uint64(i), ""}, text)
	}
	wantPipe(t, wantMessage(t, b, Connection{0, ""}), "kept")
	spare := fillDescriptors(t)
	wantDropped(t, b, 1, "dropped")
	wantDropped(t, b, 2, "dropped too")
	syscall.Close(spare)
	wantMessage(t, b, Progress{"kept again"})
	wantPipe(t, wantMessage(t, b, Connection{3, ""}), "kept again")
}

func wantDropped(t *testing.T, c *Conn, id uint64, text string) {
	t.Helper()
	wantMessage(t, c, Progress{text})
	if files := wantMessage(t, c, Connection{id, ""}); files != nil {
		t.Errorf("%d files came at the limit", len(files))
	}
}

// fillDescriptors leaves no descriptor free and returns the last one.
func fillDescriptors(t *testing.T) int {
	t.Helper()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 64, Max: 64}); err != nil {
		t.Fatal(err)
	}
	last := -1
	for {
		n, err := syscall.Dup(1)
		if errors.Is(err, syscall.EMFILE) {
			return last
		}
		if err != nil {
			t.Fatal(err)
		}
		last = n
	}
}

func FuzzReceive(f *testing.F) {
	for _, m := range golden {
		b, err := frame(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(b, b...))
	}
	f.Add([]byte{0, 16, 0, 0, '{'})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		a, b := streams(t)
		go func() {
			a.Write(stream)
			a.Close()
		}()
		c := NewConn(b)
		defer c.Close()
		for range len(stream) + 1 { // each message takes bytes, so it ends
			m, _, err := c.Receive()
			if (m == nil) == (err == nil) {
				t.Fatalf("received %#v and %v", m, err)
			}
			if c.failed != nil {
				return
			}
		}
		t.Fatalf("%d bytes, and still no end", len(stream))
	})
}
