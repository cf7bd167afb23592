//go:build unix

package fd

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// raw calls f with the number of c's descriptor.
func raw(t *testing.T, c syscall.Conn, f func(n int)) {
	t.Helper()
	rc, err := c.SyscallConn()
	must(t, err)
	must(t, rc.Control(func(fd uintptr) { f(int(fd)) }))
}

func number(t *testing.T, c syscall.Conn) (n int) {
	t.Helper()
	raw(t, c, func(fd int) { n = fd })
	return n
}

func isCloseOnExec(t *testing.T, n int) bool {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0)
	must(t, err)
	return flags&unix.FD_CLOEXEC != 0
}

func isNonblocking(t *testing.T, n int) bool {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFL, 0)
	must(t, err)
	return flags&unix.O_NONBLOCK != 0
}

func isOpen(n int) bool {
	_, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0)
	return err == nil
}

// inherited returns a descriptor as an exec leaves it open: it is neither
// close-on-exec nor, if blocking, O_NONBLOCK.
func inherited(t *testing.T, c syscall.Conn, blocking bool) int {
	t.Helper()
	n := -1
	raw(t, c, func(fd int) {
		before := isNonblocking(t, fd)
		t.Cleanup(func() { raw(t, c, func(fd int) { must(t, unix.SetNonblock(fd, before)) }) })
		var err error
		n, err = unix.Dup(fd)
		must(t, err)
		must(t, unix.SetNonblock(n, !blocking))
	})
	t.Cleanup(func() {
		if isOpen(n) {
			_ = unix.Close(n)
		}
	})
	return n
}

// zoo is one of each.
type zoo map[string]syscall.Conn

func newZoo(t *testing.T) zoo {
	t.Helper()
	dir := t.TempDir()
	z := zoo{}
	keep := func(name string, c io.Closer, err error) {
		must(t, err)
		t.Cleanup(func() { c.Close() })
		sc, ok := c.(syscall.Conn)
		if !ok {
			t.Fatalf("%T", c)
		}
		z[name] = sc
	}
	listen := func(network, address string) {
		ln, err := net.Listen(network, address)
		keep(network, ln, err)
		if network == "unixpacket" {
			return
		}
		c, err := net.Dial(network, ln.Addr().String()) // nobody needs to accept
		keep(network+" connection", c, err)
	}
	listen("tcp", "127.0.0.1:0")
	listen("unix", filepath.Join(dir, "stream"))
	listen("unixpacket", filepath.Join(dir, "packet"))
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	keep("udp", udp, err)
	gram, err := net.ListenPacket("unixgram", filepath.Join(dir, "gram"))
	keep("unixgram", gram, err)
	r, w, err := os.Pipe()
	keep("pipe", r, err)
	keep("pipe's other end", w, nil)
	file, err := os.Create(filepath.Join(dir, "file"))
	keep("file", file, err)
	return z
}

func TestKind(t *testing.T) {
	want := map[string]string{
		"tcp": "listener", "unix": "listener", "unixpacket": "listener",
		"tcp connection": "stream", "unix connection": "stream",
		"udp": "packet", "unixgram": "packet",
		"pipe": "file", "pipe's other end": "file", "file": "file",
	}
	for name, c := range newZoo(t) {
		if got, err := Kind(c); got != want[name] || err != nil {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want[name])
		}
	}
}

func TestClosedIsAnError(t *testing.T) {
	ln, err := net.ListenTCP("tcp", nil)
	must(t, err)
	must(t, ln.Close())
	if kind, err := Kind(ln); err == nil {
		t.Errorf("Kind = %q", kind)
	}
	if f, err := Dup(ln, "closed"); err == nil {
		t.Errorf("Dup = %v", f)
	}
}

// TestDupLeavesTheDescriptionAlone, in particular O_NONBLOCK: File and Fd of
// package net clear it, for every process that shares the socket.
func TestDupLeavesTheDescriptionAlone(t *testing.T) {
	for name, c := range newZoo(t) {
		n := number(t, c)
		before := isNonblocking(t, n)
		f, err := Dup(c, name)
		must(t, err)
		m := number(t, f)
		if m == n || m < 3 {
			t.Errorf("%s: %d is duplicated as %d", name, n, m)
		}
		if !isCloseOnExec(t, m) {
			t.Errorf("%s: the duplicate is not close-on-exec", name)
		}
		if f.Name() != name {
			t.Errorf("%s: it is called %s", name, f.Name())
		}
		must(t, f.Close())
		if got := isNonblocking(t, n); got != before {
			t.Errorf("%s: O_NONBLOCK was %v, is %v", name, before, got)
		}
		if !isOpen(n) {
			t.Errorf("%s: closing the duplicate has closed it", name)
		}
	}
}

// TestInheritMakesItOurs: close-on-exec all, and O_NONBLOCK a socket. Another
// file's O_NONBLOCK is its writer's business: standard output may be the same
// description.
func TestInheritMakesItOurs(t *testing.T) {
	for name, c := range newZoo(t) {
		socket := name != "file" && name != "pipe" && name != "pipe's other end"
		for _, blocking := range []bool{false, true} {
			n := inherited(t, c, blocking)
			if isCloseOnExec(t, n) {
				t.Fatalf("%s: close-on-exec from the start", name)
			}
			f, err := Inherit(n, name)
			must(t, err)
			if got := number(t, f); got != n || f.Name() != name {
				t.Errorf("%s: descriptor %d has become %d, %s", name, n, got, f.Name())
			}
			if !isCloseOnExec(t, n) {
				t.Errorf("%s: not close-on-exec", name)
			}
			if want := socket || !blocking; isNonblocking(t, n) != want {
				t.Errorf("%s, blocking %v: O_NONBLOCK is %v, want %v", name, blocking, !want, want)
			}
			must(t, f.Close())
		}
	}
}

func TestInheritRefuses(t *testing.T) {
	for _, n := range []int{-1, 0, 1, 2} {
		before := n >= 0 && isCloseOnExec(t, n)
		if f, err := Inherit(n, "stdio"); err == nil {
			t.Errorf("Inherit(%d) = %v", n, f)
		}
		if n >= 0 && isCloseOnExec(t, n) != before {
			t.Errorf("descriptor %d was touched", n)
		}
	}
	const closed = 1 << 20
	if _, err := Inherit(closed, "closed"); !errors.Is(err, unix.EBADF) {
		t.Errorf("error %v, want EBADF", err)
	}
}

func TestPairIsConnectedAndCloseOnExec(t *testing.T) {
	local, remote, err := Pair()
	must(t, err)
	defer remote.Close()
	if !isCloseOnExec(t, number(t, local)) || !isCloseOnExec(t, number(t, remote)) {
		t.Error("an end is not close-on-exec")
	}
	far, err := OpenChannel(number(t, remote))
	must(t, err)
	defer far.Close()
	for _, ends := range [][2]*net.UnixConn{{local, far}, {far, local}} {
		_, err := ends[0].Write([]byte("hello"))
		must(t, err)
		b := make([]byte, 5)
		if _, err := io.ReadFull(ends[1], b); err != nil || string(b) != "hello" {
			t.Errorf("%q, %v", b, err)
		}
	}
	must(t, local.Close())
	if _, err := far.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // Read returns it bare
		t.Errorf("%v, want EOF", err)
	}
}

// TestPeerOfAPairIsItsMaker, on both ends: where SO_PEERCRED is not to be had it
// is the parent, which is the maker for the one that is executed.
func TestPeerOfAPairIsItsMaker(t *testing.T) {
	local, remote, err := Pair()
	must(t, err)
	defer local.Close()
	far, err := Channel(remote)
	must(t, err)
	defer far.Close()
	pid, err := PeerPID(far)
	must(t, err)
	if pid != os.Getpid() && pid != os.Getppid() {
		t.Errorf("process %d, want %d", pid, os.Getpid())
	}
	must(t, far.Close())
	if pid, err := PeerPID(far); err == nil && pid != os.Getppid() {
		t.Errorf("a closed one is from process %d", pid)
	}
}

// TestOpenChannelTouchesOnlyWhatIsOne: a leaked environment may name any
// descriptor, the runtime's own included.
func TestOpenChannelTouchesOnlyWhatIsOne(t *testing.T) {
	for name, c := range newZoo(t) {
		for _, blocking := range []bool{false, true} {
			n := inherited(t, c, blocking)
			got, err := OpenChannel(n)
			if want := name == "unix connection"; (err == nil) != want {
				t.Errorf("%s: %v", name, err)
			}
			if err == nil {
				must(t, got.Close())
			} else if isNonblocking(t, n) == blocking {
				t.Errorf("%s: O_NONBLOCK was changed", name)
			}
			if !isOpen(n) || isCloseOnExec(t, n) {
				t.Errorf("%s: it was closed, or made close-on-exec", name)
			}
		}
	}
	if _, err := OpenChannel(1 << 20); !errors.Is(err, unix.EBADF) {
		t.Errorf("error %v, want EBADF", err)
	}
}

// TestChannelClosesItsFile, whatever it is.
func TestChannelClosesItsFile(t *testing.T) {
	for name, c := range newZoo(t) {
		if name == "unix" {
			continue // that it is connected is for the caller to know
		}
		f, err := Dup(c, name)
		must(t, err)
		n := number(t, f)
		got, err := Channel(f)
		if want := name == "unix connection"; (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
		if got != nil {
			must(t, got.Close())
		}
		if isOpen(n) {
			t.Errorf("%s: the file is open", name)
		}
	}
}

func TestLimit(t *testing.T) {
	var lim unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &lim))
	if got := Limit(); got != uint64(lim.Cur) || got == 0 { //nolint:unconvert,nolintlint // signed on some BSDs
		t.Errorf("%d, want %d", got, lim.Cur)
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	must(t, os.WriteFile(a, nil, 0o600))
	must(t, os.WriteFile(b, nil, 0o600))
	must(t, os.Link(a, filepath.Join(dir, "link")))
	identity := func(name string) [2]uint64 {
		fi, err := os.Lstat(filepath.Join(dir, name))
		must(t, err)
		dev, ino := Identity(fi)
		return [2]uint64{dev, ino}
	}
	if identity("a") != identity("link") {
		t.Error("one file has two identities")
	}
	if identity("a") == identity("b") || identity("a")[1] == 0 {
		t.Error("two files have one identity")
	}
}

func TestNothingLeaks(t *testing.T) {
	z := newZoo(t)
	count := func() int {
		entries, err := os.ReadDir("/dev/fd")
		must(t, err)
		return len(entries)
	}
	before := count()
	for name, c := range z {
		if f, err := Dup(c, name); err == nil {
			_, _ = Kind(f)
			f.Close()
		}
		if c, err := OpenChannel(number(t, c)); err == nil {
			c.Close()
		}
		if f, err := Dup(c, name); err == nil {
			if c, err := Channel(f); err == nil {
				c.Close()
			}
		}
	}
	local, remote, err := Pair()
	must(t, err)
	local.Close()
	remote.Close()
	if got := count(); got != before {
		t.Errorf("%d descriptors more", got-before)
	}
}
