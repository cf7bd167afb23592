//go:build unix

package upgrader

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// inode identifies the file or socket behind a descriptor, in all processes.
func inode(t testing.TB, c syscall.Conn) uint64 {
	t.Helper()
	f, err := fd.Dup(c, "inode")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	_, ino := fd.Identity(fi)
	return ino
}

// settle calls Ready, and waits until what follows it is done as well: the
// second call finds run idle.
func settle(t *testing.T, u *Upgrader) {
	t.Helper()
	must(t, u.Ready())
	must(t, u.Ready())
}

// take makes u the process that serves, and from the one that was replaced.
func take(t *testing.T, from, u *Upgrader) {
	t.Helper()
	settle(t, u)
	from.sockets.setGates(false)
	from.committed.Store(false)
}

// kinds are what can be handed over, with what New's caller asks for.
var kinds = []struct {
	network, address string // "DIR" is a directory of the test
}{
	{"tcp", "127.0.0.1:0"},
	{"tcp", "localhost:0"},
	{"tcp", ":0"},
	{"tcp4", "127.0.0.1:0"},
	{"tcp6", "[::1]:0"},
	{"unix", "DIR/a.sock"},
	{"unix", "@upgrader-test-%d"},
	{"unixpacket", "DIR/b.sock"},
	{"udp", "127.0.0.1:0"},
	{"udp4", "127.0.0.1:0"},
	{"udp6", "[::1]:0"},
	{"unixgram", "DIR/c.sock"},
}

func isPacket(network string) bool { return strings.HasPrefix(network, "udp") || network == "unixgram" }

// held is a socket of either kind.
type held interface {
	syscall.Conn
	Close() error
}

func hold(t *testing.T, u *Upgrader, name, network, address string) (held, net.Addr) {
	t.Helper()
	if isPacket(network) {
		p := listenPacketAs(t, u, name, network, address)
		return p, p.LocalAddr()
	}
	l := listenAs(t, u, name, network, address)
	return l, l.Addr()
}

// wantEcho makes one client talk to whoever serves the socket.
func wantEcho(t *testing.T, h held, addr net.Addr) {
	t.Helper()
	go func() {
		buf := make([]byte, 10)
		switch s := h.(type) {
		case *PacketConn:
			n, from, err := s.ReadFrom(buf)
			if err == nil && from != nil && from.String() != "" {
				_, _ = s.WriteTo(buf[:n], from)
			}
		case *Listener:
			c, err := s.Accept()
			if err == nil {
				n, _ := c.Read(buf)
				_, _ = c.Write(buf[:n])
				c.Close()
			}
		}
	}()
	d := net.Dialer{}
	if addr.Network() == "unixgram" { // to be answered, it needs a name
		d.LocalAddr = &net.UnixAddr{Name: filepath.Join(t.TempDir(), "client"), Net: "unixgram"}
	}
	c, err := d.DialContext(t.Context(), addr.Network(), addr.String())
	must(t, err)
	defer c.Close()
	_, err = c.Write([]byte("hello"))
	must(t, err)
	buf := make([]byte, 10)
	if n, err := c.Read(buf); string(buf[:n]) != "hello" {
		t.Errorf("%q, %v; want an echo", buf[:n], err)
	}
}

// TestSixGenerationsShareOneSocket of each kind, unchanged.
func TestSixGenerationsShareOneSocket(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.network+" "+kind.address, func(t *testing.T) {
			address := strings.ReplaceAll(kind.address, "DIR", t.TempDir())
			address = strings.ReplaceAll(address, "%d", fmt.Sprint(os.Getpid()))
			u := newAlone(t, Options{})
			h, addr := hold(t, u, "main", kind.network, address)
			must(t, u.Ready())
			ino, meta := inode(t, h), u.sockets.named["main"].Socket
			if meta.Address != addr.String() {
				t.Errorf("it is at %s, said to be at %s", addr, meta.Address)
			}
			for range 6 {
				heir := heirOf(t, u, Options{})
				next, nextAddr := hold(t, heir, "main", kind.network, address)
				if got := inode(t, next); got != ino {
					t.Fatalf("generation %d has socket %d, want %d", heir.Generation(), got, ino)
				}
				if got := heir.sockets.named["main"].Socket; got != meta || nextAddr.String() != addr.String() {
					t.Fatalf("generation %d has %+v at %v, want %+v at %v", heir.Generation(), got, nextAddr, meta, addr)
				}
				wantFlags(t, next)
				wantFlags(t, h)
				take(t, u, heir)
				must(t, h.Close())
				u, h = heir, next
			}
			wantEcho(t, h, addr)
			must(t, h.Close())
			if ino := meta.Ino; ino != 0 {
				wantGone(t, address)
			}
		})
	}
}

func wantGone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v, want that it is gone", path, err)
	}
}

func wantThere(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

// TestWhichAddressIsTheSame: "P" is the port that the first process got.
func TestWhichAddressIsTheSame(t *testing.T) {
	tests := []struct {
		network, first, then string
		same                 bool
	}{
		{"tcp", "127.0.0.1:0", "127.0.0.1:0", true},
		{"tcp", "127.0.0.1:0", "127.0.0.1:P", true},
		{"tcp", "127.0.0.1:0", "localhost:P", true},
		{"tcp", "127.0.0.1:0", "localhost:0", true},
		{"tcp", "localhost:0", "127.0.0.1:P", true},
		{"tcp", "localhost:0", "localhost:P", true},
		{"tcp", "127.0.0.1:0", "[::ffff:127.0.0.1]:P", true},
		{"tcp", ":0", ":P", true},
		{"tcp", ":0", "[::]:P", true},
		{"tcp", "127.0.0.1:0", "127.0.0.2:P", false},
		{"tcp", "127.0.0.1:0", "127.0.0.1:Q", false},
		{"tcp", "127.0.0.1:0", "localhost:Q", false},
		{"udp", "127.0.0.1:0", "localhost:P", true},
		{"udp", "localhost:0", "localhost:0", true},
		{"udp", "127.0.0.1:0", "127.0.0.2:P", false},
		{"unix", "DIR/x.sock", "DIR/x.sock", true},
		{"unix", "DIR/x.sock", "DIR/./x.sock", true},
		{"unix", "DIR/x.sock", "x.sock", true},
		{"unix", "x.sock", "DIR/x.sock", true},
		{"unix", "DIR/x.sock", "DIR/y.sock", false},
		{"unixgram", "x.sock", "DIR/x.sock", true},
		{"unixgram", "DIR/x.sock", "DIR/y.sock", false},
		{"unix", "@x-PID", "@x-PID", true},
		{"unix", "@x-PID", "@y-PID", false},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s %s then %s", tt.network, tt.first, tt.then), func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(dir)
			fill := strings.NewReplacer("DIR", dir, "PID", fmt.Sprint(os.Getpid())).Replace
			u := newAlone(t, Options{})
			h, addr := hold(t, u, "main", tt.network, fill(tt.first))
			_, port, _ := net.SplitHostPort(addr.String())
			other, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free on the next line
			must(t, err)
			_, free, _ := net.SplitHostPort(other.Addr().String())
			must(t, other.Close())
			then := strings.NewReplacer("P", port, "Q", free).Replace(fill(tt.then))
			if strings.HasPrefix(tt.network, "unix") {
				then = fill(tt.then)
			}
			heir := heirOf(t, u, Options{})
			next, _ := hold(t, heir, "main", tt.network, then)
			if same := inode(t, next) == inode(t, h); same != tt.same {
				t.Errorf("%s is the same as %s: %v, want %v", then, addr, same, tt.same)
			}
		})
	}
}

// TestWhatWasAskedForIsTheSame without a look at the network or the directory,
// which may have changed since.
func TestWhatWasAskedForIsTheSame(t *testing.T) {
	u := newAlone(t, Options{})
	h, _ := hold(t, u, "main", "tcp", "127.0.0.1:0")
	heir := heirOf(t, u, Options{})
	heir.sockets.named["main"].Requested = "no-such-host.invalid:80"
	next, _ := hold(t, heir, "main", "tcp", "no-such-host.invalid:80")
	if inode(t, next) != inode(t, h) {
		t.Error("another socket")
	}

	home := t.TempDir()
	t.Chdir(home)
	h, _ = hold(t, u, "admin", "unix", "x.sock")
	t.Chdir(t.TempDir())
	for _, address := range []string{"x.sock", filepath.Join(home, "x.sock")} {
		next, _ := hold(t, heirOf(t, u, Options{}), "admin", "unix", address)
		if inode(t, next) != inode(t, h) {
			t.Errorf("%s is another socket", address)
		}
	}
}

// TestFileIsNoSocket, though Listen asks for its name: what package net would do
// to find out, it would do to somebody's pipe.
func TestFileIsNoSocket(t *testing.T) {
	for _, described := range []bool{false, true} {
		t.Run(fmt.Sprintf("described %v", described), func(t *testing.T) {
			r, w, err := os.Pipe()
			must(t, err)
			defer r.Close()
			defer w.Close()
			_ = w.Fd() // blocking
			u := newAlone(t, Options{})
			must(t, u.AddFile("main", w))
			heir := heirOf(t, u, Options{})
			if !described {
				heir.sockets.named["main"].Socket = wire.Socket{Name: "main"}
			}
			listenAs(t, heir, "main", "tcp", "127.0.0.1:0")
			if flags(t, w)&syscall.O_NONBLOCK != 0 {
				t.Error("the pipe has become O_NONBLOCK")
			}
		})
	}
}

// TestAnotherNetworkIsAnotherSocket, though the address is the same: the name
// says what was asked for.
func TestAnotherNetworkIsAnotherSocket(t *testing.T) {
	u := newAlone(t, Options{})
	l := listenAs(t, u, "main", "tcp", "127.0.0.1:0")
	heir := heirOf(t, u, Options{})
	p := listenPacketAs(t, heir, "main", "udp", l.Addr().String())
	if inode(t, p) == inode(t, l) {
		t.Error("a packet socket that is a listening one")
	}
	heir = heirOf(t, heir, Options{})
	m := listenAs(t, heir, "main", "tcp", "127.0.0.1:0")
	if inode(t, m) == inode(t, p) {
		t.Error("a listening socket that is a packet one")
	}
}

// TestInheritedWithoutAManifest: the predecessor was gone before it sent one,
// and the kernel knows what the descriptors are.
func TestInheritedWithoutAManifest(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.network+" "+kind.address, func(t *testing.T) {
			address := strings.ReplaceAll(kind.address, "DIR", t.TempDir())
			address = strings.ReplaceAll(address, "%d", fmt.Sprint(os.Getpid()))
			u := newAlone(t, Options{})
			h, addr := hold(t, u, "main", kind.network, address)
			f, err := fd.Dup(h, "main")
			must(t, err)
			heir := newAlone(t, Options{})
			must(t, heir.sockets.park(&socket{Socket: wire.Socket{Name: "main"}, parked: f, inherited: true}))
			next, nextAddr := hold(t, heir, "main", kind.network, address)
			if inode(t, next) != inode(t, h) {
				t.Fatalf("%v is not %v", nextAddr, addr)
			}
			if got, want := heir.sockets.named["main"].Socket, u.sockets.named["main"].Socket; got != want {
				t.Errorf("it is %+v, want %+v", got, want)
			}
			take(t, u, heir)
			wantEcho(t, next, addr)
			must(t, next.Close())
			if strings.HasPrefix(address, "/") {
				wantGone(t, address)
			}
		})
	}
}

// ---- what the program does not ask for, or asks for elsewhere ----

// TestMovedSocketStaysOpenUntilThereIsNoWayBack.
func TestMovedSocketStaysOpenUntilThereIsNoWayBack(t *testing.T) {
	for _, kind := range []struct{ network, first, then string }{
		{"tcp", "127.0.0.1:0", "127.0.0.2:0"},
		{"unix", "DIR/old.sock", "DIR/new.sock"},
	} {
		t.Run(kind.network, func(t *testing.T) {
			dir := t.TempDir()
			first, then := strings.ReplaceAll(kind.first, "DIR", dir), strings.ReplaceAll(kind.then, "DIR", dir)
			u := newAlone(t, Options{})
			old := listenAs(t, u, "main", kind.network, first)
			heir := heirOf(t, u, Options{})
			must(t, old.Close()) // so that the heir's descriptor is the last
			l := listenAs(t, heir, "main", kind.network, then)
			wantDials(t, old.Addr(), true)
			settle(t, heir)
			wantDials(t, old.Addr(), false)
			wantEcho(t, l, l.Addr())
			if kind.network == "unix" {
				wantGone(t, first)
				wantThere(t, then)
			}
		})
	}
}

// TestMovedPacketSocketIsClosed as well.
func TestMovedPacketSocketIsClosed(t *testing.T) {
	u := newAlone(t, Options{})
	old := listenPacketAs(t, u, "main", "udp", "127.0.0.1:0")
	heir := heirOf(t, u, Options{})
	must(t, old.Close())
	listenPacketAs(t, heir, "main", "udp", "127.0.0.2:0")
	_, err := heir.ListenPacket(t.Context(), "other", "udp", old.LocalAddr().String())
	wantText(t, err, `inherited and not claimed: "main" (udp `+old.LocalAddr().String()+")")
	settle(t, heir)
	listenPacketAs(t, heir, "other", "udp", old.LocalAddr().String())
}

// TestClaimingLeaksNoDescriptor, nor does an error.
func TestClaimingLeaksNoDescriptor(t *testing.T) {
	u := newAlone(t, Options{})
	path := filepath.Join(t.TempDir(), "x.sock")
	listenAs(t, u, "a", "tcp", "127.0.0.1:0")
	listenAs(t, u, "b", "unix", path)
	dns := listenPacketAs(t, u, "c", "udp", "127.0.0.1:0")
	must(t, u.AddFile("d", os.Stdin))
	heir := heirOf(t, u, Options{})
	before := fdsBefore(t)
	listenAs(t, heir, "a", "tcp", "127.0.0.1:0")
	listenAs(t, heir, "b", "unix", path)
	listenPacketAs(t, heir, "c", "udp", dns.LocalAddr().String())
	f, err := heir.File("d")
	must(t, err)
	must(t, f.Close())
	for range 3 {
		if _, err := heir.Listen(t.Context(), "a", "tcp", "127.0.0.1:0"); err == nil {
			t.Error("a name is there twice")
		}
		if err := heir.AddFile("d", os.Stdin); err == nil {
			t.Error("a name is there twice")
		}
	}
	wantNoMoreFDs(t, before)
}

func wantDials(t *testing.T, addr net.Addr, want bool) {
	t.Helper()
	c, err := net.Dial(addr.Network(), addr.String())
	if err == nil {
		c.Close()
	}
	if (err == nil) != want {
		t.Fatalf("dial %v: %v, want success: %v", addr, err, want)
	}
}

func TestUnclaimedSocketIsClosedAtReady(t *testing.T) {
	u := newAlone(t, Options{})
	old := listenAs(t, u, "dropped", "tcp", "127.0.0.1:0")
	path := filepath.Join(t.TempDir(), "dropped.sock")
	oldUnix := listenAs(t, u, "dropped too", "unix", path)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	must(t, u.AddFile("dropped file", w))
	heir := heirOf(t, u, Options{})
	must(t, old.Close())
	must(t, oldUnix.Close())
	must(t, w.Close())
	u.sockets.named["dropped file"].parked.Close()
	wantDials(t, old.Addr(), true)
	wantDials(t, oldUnix.Addr(), true)
	settle(t, heir)
	wantDials(t, old.Addr(), false)
	wantGone(t, path)
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the pipe: %v, want EOF", err)
	}
	if got := heir.sockets.unclaimed(); len(got) > 0 {
		t.Errorf("still unclaimed: %q", got)
	}
}

// TestListenDuringReady: what is opened anew while Ready closes the unclaimed
// leaves nothing behind.
func TestListenDuringReady(t *testing.T) {
	u := newAlone(t, Options{})
	old := listenAs(t, u, "main", "tcp", "127.0.0.1:0")
	var heir *Upgrader
	heir = heirOf(t, u, Options{ListenConfig: &net.ListenConfig{Control: func(string, string, syscall.RawConn) error {
		if f, err := heir.File("main"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("File, while the name is a listener's to be: %v, %v", f, err)
		}
		settle(t, heir)
		return nil
	}}})
	must(t, old.Close())
	l := listenAs(t, heir, "main", "tcp", "127.0.0.2:0")
	wantDials(t, old.Addr(), false)
	wantEcho(t, l, l.Addr())
}

// TestFailedListenDuringReady: the same, if nothing is opened.
func TestFailedListenDuringReady(t *testing.T) {
	u := newAlone(t, Options{})
	old := listenAs(t, u, "main", "tcp", "127.0.0.1:0")
	var heir *Upgrader
	heir = heirOf(t, u, Options{ListenConfig: &net.ListenConfig{Control: func(string, string, syscall.RawConn) error {
		settle(t, heir)
		return errors.New("no")
	}}})
	must(t, old.Close())
	if _, err := heir.Listen(t.Context(), "main", "tcp", "127.0.0.2:0"); err == nil {
		t.Fatal("no error")
	}
	wantDials(t, old.Addr(), false)
}

func TestClashNamesTheUnclaimed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	u := newAlone(t, Options{})
	l := listenAs(t, u, "web", "tcp", "127.0.0.1:0")
	p := listenPacketAs(t, u, "dns", "udp", "127.0.0.1:0")
	listenAs(t, u, "admin", "unix", path)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	must(t, u.AddFile("pipe", w))
	heir := heirOf(t, u, Options{})
	want := fmt.Sprintf(`inherited and not claimed: "admin" (unix %s), "dns" (udp %s), "pipe" (file), "web" (tcp %s): listen under that name`,
		path, p.LocalAddr(), l.Addr())
	_, tcpErr := heir.Listen(t.Context(), "http", "tcp", l.Addr().String())
	_, udpErr := heir.ListenPacket(t.Context(), "http", "udp", p.LocalAddr().String())
	_, unixErr := heir.Listen(t.Context(), "http", "unix", path)
	_, otherNetwork := heir.Listen(t.Context(), "web", "tcp4", l.Addr().String())
	for _, err := range []error{tcpErr, udpErr, unixErr, otherNetwork} {
		if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("error\n%v\nwant EADDRINUSE and\n%s", err, want)
		}
	}
	// Nothing was lost by the attempts.
	if got := listenAs(t, heir, "web", "tcp", l.Addr().String()); inode(t, got) != inode(t, l) {
		t.Error("the inherited socket is lost")
	}
	if _, err := newAlone(t, Options{}).Listen(t.Context(), "x", "tcp", l.Addr().String()); !errors.Is(err, syscall.EADDRINUSE) ||
		strings.Contains(err.Error(), "inherited") {
		t.Errorf("error %v, want one that speaks of nothing inherited", err)
	}
}

// ---- names ----

func TestBadNames(t *testing.T) {
	u := newAlone(t, Options{})
	listenAs(t, u, "taken", "tcp", "127.0.0.1:0")
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	must(t, u.AddFile("file", r))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	for _, name := range []string{"", strings.Repeat("x", 256), "\xff", "taken"} {
		_, listen := u.Listen(t.Context(), name, "tcp", "127.0.0.1:0")
		_, packet := u.ListenPacket(t.Context(), name, "udp", "127.0.0.1:0")
		for call, err := range map[string]error{
			"Listen": listen, "ListenPacket": packet, "AddListener": u.AddListener(name, ln), "AddFile": u.AddFile(name, r),
		} {
			if !errors.Is(err, ErrName) || !strings.HasPrefix(err.Error(), "upgrader: ") {
				t.Errorf("%s of %.10q: %v, want ErrName", call, name, err)
			}
		}
	}
	if err := u.AddFile("file", w); !errors.Is(err, ErrName) {
		t.Errorf("AddFile twice: %v, want ErrName", err)
	}
}

// TestOddNamesAreHandedOver, each of them, through the environment.
func TestOddNamesAreHandedOver(t *testing.T) {
	u := newAlone(t, Options{})
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	for i, name := range oddNames {
		if i%2 == 0 {
			listenAs(t, u, name, "tcp", "127.0.0.1:0")
		} else {
			must(t, u.AddFile(name, w))
		}
	}
	meta, files, err := u.sockets.duplicate()
	must(t, err)
	defer closeAll(files)
	extra, vars, err := inheritance{channel: w, meta: meta, sockets: files}.files(2)
	must(t, err)
	e, _, err := parseEnv(lookupIn(vars))
	must(t, err)
	if len(e.fds) != len(oddNames) {
		t.Fatalf("%d names arrive, want %d", len(e.fds), len(oddNames))
	}
	for _, f := range e.fds {
		if !slices.Contains(oddNames, f.name) {
			t.Errorf("%q arrives", f.name)
		}
		if got := inode(t, extra[f.fd-3]); got != inode(t, files[slices.IndexFunc(meta, func(m wire.Socket) bool { return m.Name == f.name })]) {
			t.Errorf("%q is another descriptor", f.name)
		}
	}
}

func TestNameIsFreeAfterAnErrorAndAfterClose(t *testing.T) {
	u := newAlone(t, Options{})
	for range 3 {
		if _, err := u.Listen(t.Context(), "main", "tcp", "not an address"); err == nil {
			t.Fatal("no error")
		}
		if _, err := u.ListenPacket(t.Context(), "main", "udp", "not an address"); err == nil {
			t.Fatal("no error")
		}
		must(t, listenAs(t, u, "main", "tcp", "127.0.0.1:0").Close())
		must(t, listenPacketAs(t, u, "main", "udp", "127.0.0.1:0").Close())
	}
	if meta, files, err := u.sockets.duplicate(); len(meta)+len(files) > 0 || err != nil {
		t.Errorf("%v is handed over, %v", meta, err)
	}
}

func TestUnknownNetworks(t *testing.T) {
	u := newAlone(t, Options{})
	for _, network := range []string{"", "udp", "unixgram", "ip4:icmp", "tcp5"} {
		_, err := u.Listen(t.Context(), "x", network, "127.0.0.1:0")
		if unknown := net.UnknownNetworkError(""); !errors.As(err, &unknown) {
			t.Errorf("Listen on %q: %v", network, err)
		}
	}
	for _, network := range []string{"", "tcp", "unix", "ip4:icmp", "ip"} {
		_, err := u.ListenPacket(t.Context(), "x", network, "127.0.0.1:0")
		if unknown := net.UnknownNetworkError(""); !errors.As(err, &unknown) {
			t.Errorf("ListenPacket on %q: %v", network, err)
		}
	}
}

func TestListenHonoursItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newAlone(t, Options{}).Listen(ctx, "x", "tcp", "localhost:0"); !errors.Is(err, context.Canceled) {
		t.Errorf("Listen: %v, want the context's error", err)
	}
}

// ---- the paths of unix sockets ----

// unixKinds are those with a path.
var unixKinds = []string{"unix", "unixpacket", "unixgram"}

// TestUnixPathIsUnlinkedByItsCommittedOwner, and only while it is what it bound.
func TestUnixPathIsUnlinkedByItsCommittedOwner(t *testing.T) {
	type stage struct {
		u, heir *Upgrader
		h, next held
		path    string
	}
	tests := []struct {
		name string
		end  func(*testing.T, *stage)
		gone bool
	}{
		{"committed, closes", func(t *testing.T, s *stage) { must(t, s.u.Ready()); must(t, s.h.Close()) }, true},
		{"committed, stops", func(t *testing.T, s *stage) { must(t, s.u.Ready()); s.u.Stop() }, true},
		{"committed, stops, closes", func(t *testing.T, s *stage) { must(t, s.u.Ready()); s.u.Stop(); must(t, s.h.Close()) }, true},
		{"not ready, closes", func(t *testing.T, s *stage) { must(t, s.h.Close()) }, false},
		{"the successor closes before commit", func(t *testing.T, s *stage) { must(t, s.next.Close()) }, false},
		{"the successor stops before commit", func(t *testing.T, s *stage) { s.heir.Stop(); must(t, s.next.Close()) }, false},
		{"the predecessor closes after commit", func(t *testing.T, s *stage) { take(t, s.u, s.heir); must(t, s.h.Close()) }, false},
		{"both close after commit", func(t *testing.T, s *stage) {
			take(t, s.u, s.heir)
			must(t, s.h.Close())
			must(t, s.next.Close())
		}, true},
		{"the successor stops after commit", func(t *testing.T, s *stage) { take(t, s.u, s.heir); s.heir.Stop() }, true},
		{"somebody else's", func(t *testing.T, s *stage) {
			must(t, s.u.Ready())
			must(t, os.Remove(s.path))
			must(t, os.WriteFile(s.path, nil, 0o600))
			must(t, s.h.Close())
			s.u.Stop()
		}, false},
		{"removed by somebody else", func(t *testing.T, s *stage) {
			must(t, s.u.Ready())
			must(t, os.Remove(s.path))
			must(t, s.h.Close())
		}, true},
	}
	for _, network := range unixKinds {
		for _, tt := range tests {
			t.Run(network+", "+tt.name, func(t *testing.T) {
				s := &stage{path: filepath.Join(t.TempDir(), "x.sock")}
				s.u = newAlone(t, Options{})
				s.h, _ = hold(t, s.u, "main", network, s.path)
				s.heir = heirOf(t, s.u, Options{})
				s.next, _ = hold(t, s.heir, "main", network, s.path)
				tt.end(t, s)
				if tt.gone {
					wantGone(t, s.path)
				} else {
					wantThere(t, s.path)
				}
			})
		}
	}
}

// TestRelativeUnixPathSurvivesChdir, of this process and of its successor.
func TestRelativeUnixPathSurvivesChdir(t *testing.T) {
	for _, network := range unixKinds {
		for _, chdirAfter := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, inherited %v", network, chdirAfter), func(t *testing.T) {
				home, elsewhere := t.TempDir(), t.TempDir()
				t.Chdir(home)
				u := newAlone(t, Options{})
				h, _ := hold(t, u, "main", network, "x.sock")
				must(t, u.Ready())
				if chdirAfter {
					heir := heirOf(t, u, Options{})
					next, _ := hold(t, heir, "main", network, "x.sock")
					take(t, u, heir)
					must(t, h.Close())
					h = next
				}
				t.Chdir(elsewhere)
				must(t, os.WriteFile("x.sock", nil, 0o600))
				wantThere(t, filepath.Join(home, "x.sock"))
				must(t, h.Close())
				wantGone(t, filepath.Join(home, "x.sock"))
				wantThere(t, filepath.Join(elsewhere, "x.sock"))
			})
		}
	}
}

// TestMovedUnixPathGoesWithTheService: a successor that is stopped on probation
// still has what it moved away from.
func TestMovedUnixPathGoesWithTheService(t *testing.T) {
	dir := t.TempDir()
	u := newAlone(t, Options{})
	listenAs(t, u, "main", "unix", filepath.Join(dir, "old.sock"))
	heir := heirOf(t, u, Options{})
	listenAs(t, heir, "main", "unix", filepath.Join(dir, "new.sock"))
	must(t, heir.sockets.unlinkAll())
	wantGone(t, filepath.Join(dir, "old.sock"))
	wantGone(t, filepath.Join(dir, "new.sock"))
}

// ---- AddListener, AddFile, File ----

func TestAddedListenerIsFoundByListen(t *testing.T) {
	for _, kind := range kinds {
		if isPacket(kind.network) {
			continue
		}
		t.Run(kind.network+" "+kind.address, func(t *testing.T) {
			address := strings.ReplaceAll(kind.address, "DIR", t.TempDir())
			address = strings.ReplaceAll(address, "%d", fmt.Sprint(os.Getpid()))
			ln, err := net.Listen(kind.network, address)
			must(t, err)
			bound := ln.Addr().String()
			u := newAlone(t, Options{})
			must(t, u.AddListener("main", ln))
			sc, ok := ln.(syscall.Conn)
			if !ok {
				t.Fatalf("%T", ln)
			}
			ino := inode(t, sc)
			must(t, ln.Close())
			if strings.HasPrefix(address, "/") {
				wantThere(t, address)
			}
			must(t, u.Ready()) // unclaimed, and not inherited: it stays
			heir := heirOf(t, u, Options{})
			for _, u := range []*Upgrader{u, heir} {
				l := listenAs(t, u, "main", ln.Addr().Network(), bound)
				if inode(t, l) != ino || l.Addr().String() != bound {
					t.Errorf("Listen returns %v, want the one that was added, %v", l.Addr(), bound)
				}
			}
			take(t, u, heir)
			l := heir.sockets.named["main"]
			if strings.HasPrefix(address, "/") {
				must(t, l.unlink())
				wantGone(t, address)
			}
		})
	}
}

func TestAddListenerRefuses(t *testing.T) {
	u := newAlone(t, Options{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	packet, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	defer packet.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, closed.Close())
	uc, ok := packet.(*net.UDPConn)
	if !ok {
		t.Fatalf("%T", packet)
	}
	tests := map[string]struct {
		ln   net.Listener
		text string
	}{
		"crypto/tls":        {tls.NewListener(ln, &tls.Config{}), "want a *net.TCPListener"},
		"a packet socket":   {notListening{uc}, "is a packet socket, want a listening one"},
		"a closed listener": {closed, "closed"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := u.AddListener("main", tt.ln)
			wantText(t, err, tt.text)
			wantText(t, err, `upgrader: add "main"`)
		})
	}
	must(t, u.AddListener("main", ln)) // the name was not used up
}

// notListening has the methods of a listener.
type notListening struct{ *net.UDPConn }

func (notListening) Accept() (net.Conn, error) { return nil, errors.New("it does not listen") }
func (n notListening) Addr() net.Addr          { return n.LocalAddr() }

// TestRefusedUnixListenerKeepsItsHabits: it still unlinks its path.
func TestRefusedUnixListenerKeepsItsHabits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	ln, err := net.Listen("unix", path)
	must(t, err)
	if err := newAlone(t, Options{}).AddListener("", ln); !errors.Is(err, ErrName) {
		t.Fatalf("AddListener: %v", err)
	}
	must(t, ln.Close())
	wantGone(t, path)
}

// TestAddedAgainIsTheInheritedOne: a program that adds at each start keeps what
// its predecessor added, also if it does nothing else with it.
func TestAddedAgainIsTheInheritedOne(t *testing.T) {
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	u := newAlone(t, Options{})
	must(t, u.AddFile("pipe", w))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	must(t, u.AddListener("main", ln))
	for range 3 {
		heir := heirOf(t, u, Options{})
		other, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		defer other.Close()
		if err := heir.AddFile("pipe", r); !errors.Is(err, ErrName) {
			t.Errorf("AddFile: %v, want ErrName", err)
		}
		if err := heir.AddListener("main", other); !errors.Is(err, ErrName) {
			t.Errorf("AddListener: %v, want ErrName", err)
		}
		take(t, u, heir)
		u = heir
	}
	f, err := u.File("pipe")
	must(t, err)
	defer f.Close()
	if inode(t, f) != inode(t, w) {
		t.Error("the pipe is another one")
	}
	if l := listenAs(t, u, "main", "tcp", ln.Addr().String()); l.Addr().String() != ln.Addr().String() {
		t.Errorf("the listener is another one: %v", l.Addr())
	}
}

func TestFileIsADuplicate(t *testing.T) {
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	u := newAlone(t, Options{})
	must(t, u.AddFile("pipe", w))
	before := flags(t, w)
	must(t, w.Close()) // the caller's
	for range 6 {
		for range 2 { // again and again
			f, err := u.File("pipe")
			must(t, err)
			_, err = f.WriteString("x")
			must(t, err)
			if got := flags(t, f); got != before {
				t.Errorf("flags %o, want %o", got, before)
			}
			must(t, f.Close())
			if _, err := r.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		heir := heirOf(t, u, Options{})
		f, err := heir.File("pipe") // claimed
		must(t, err)
		must(t, f.Close())
		take(t, u, heir)
		u = heir
	}
}

func TestFileThatIsNone(t *testing.T) {
	u := newAlone(t, Options{})
	listenAs(t, u, "main", "tcp", "127.0.0.1:0")
	listenPacketAs(t, u, "dns", "udp", "127.0.0.1:0")
	for _, name := range []string{"unknown", "main", "dns", ""} {
		for _, u := range []*Upgrader{u, heirOf(t, u, Options{})} {
			f, err := u.File(name)
			if !errors.Is(err, fs.ErrNotExist) || f != nil || !strings.HasPrefix(err.Error(), "upgrader: file ") {
				t.Errorf("File(%q): %v, %v; want fs.ErrNotExist", name, f, err)
			}
		}
	}
	f, err := os.Open(os.DevNull)
	must(t, err)
	must(t, f.Close())
	wantText(t, u.AddFile("closed", f), "closed file")
}

// TestRegularFileKeepsItsOffset: it is the same open file, not the same path.
func TestRegularFileKeepsItsOffset(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	must(t, err)
	defer f.Close()
	_, err = f.WriteString("0123456789")
	must(t, err)
	u := newAlone(t, Options{})
	must(t, u.AddFile("file", f))
	got, err := heirOf(t, u, Options{}).File("file")
	must(t, err)
	defer got.Close()
	if at, err := got.Seek(0, io.SeekCurrent); at != 10 || err != nil {
		t.Errorf("at %d, %v; want 10", at, err)
	}
}

// ---- what is handed over ----

// TestDuplicatesAreCloseOnExec: only the one exec that hands them over may see
// them, which clears the flag in the child.
func TestDuplicatesAreCloseOnExec(t *testing.T) {
	u := newAlone(t, Options{})
	listenAs(t, u, "main", "tcp", "127.0.0.1:0")
	listenPacketAs(t, u, "dns", "udp", "127.0.0.1:0")
	must(t, u.AddFile("file", os.Stdin))
	before := fdsBefore(t)
	meta, files, err := u.sockets.duplicate()
	must(t, err)
	if len(meta) != 3 || len(files) != 3 {
		t.Errorf("%d described, %d duplicates; want 3 of each", len(meta), len(files))
	}
	for i, f := range files {
		if got := flags(t, f); got&syscall.O_CLOEXEC == 0 {
			t.Errorf("%s is not close-on-exec", meta[i].Name)
		}
		if kind, err := fd.Kind(f); kind != meta[i].Kind && meta[i].Kind != kindFile || err != nil {
			t.Errorf("%s is a %s, described as %s", meta[i].Name, kind, meta[i].Kind)
		}
	}
	closeAll(files)
	wantNoMoreFDs(t, before)
}

// fdsBefore counts the descriptors of this process before what must leak none.
// The garbage collector closes what it finds, so it rests until the test ends.
func fdsBefore(t testing.TB) int {
	t.Helper()
	for range 2 { // it closes what earlier tests have left
		collected := make(chan struct{})
		runtime.AddCleanup(new([16]byte), func(c chan struct{}) { close(c) }, collected)
		runtime.GC()
		<-collected
	}
	percent := debug.SetGCPercent(-1)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
	return openFDs(t)
}

func openFDs(t testing.TB) int {
	t.Helper()
	if r, w, err := os.Pipe(); err == nil { // the runtime opens its poller with the first
		closeAll([]*os.File{r, w})
	}
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// wantNoMoreFDs waits until this process has no more descriptors than before:
// what is closed may be closed a moment after the answer.
func wantNoMoreFDs(t testing.TB, before int) {
	t.Helper()
	limit := time.Now().Add(patience)
	for openFDs(t) > before {
		if time.Now().After(limit) {
			t.Fatalf("%d descriptors more", openFDs(t)-before)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestSocketBeingOpenedIsNotHandedOver: half a socket would be none.
func TestSocketBeingOpenedIsNotHandedOver(t *testing.T) {
	var u *Upgrader
	u = newAlone(t, Options{ListenConfig: &net.ListenConfig{Control: func(string, string, syscall.RawConn) error {
		meta, files, err := u.sockets.duplicate()
		if len(meta)+len(files) > 0 || err != nil {
			t.Errorf("%v is handed over, %v", meta, err)
		}
		return err
	}}})
	listenAs(t, u, "main", "tcp", "127.0.0.1:0")
	if meta, files, err := u.sockets.duplicate(); len(meta) != 1 || err != nil {
		t.Errorf("%v is handed over, %v; want main", meta, err)
	} else {
		closeAll(files)
	}
}

// TestSocketOpenedLaterIsBehindTheSameGate as those from before.
func TestSocketOpenedLaterIsBehindTheSameGate(t *testing.T) {
	u := newAlone(t, Options{})
	early := listenAs(t, u, "early", "tcp", "127.0.0.1:0")
	must(t, u.Ready())
	late := listenAs(t, u, "late", "tcp", "127.0.0.1:0")
	wantEcho(t, early, early.Addr())
	wantEcho(t, late, late.Addr())
	u.sockets.setGates(false)
	latest := listenAs(t, u, "latest", "tcp", "127.0.0.1:0")
	for _, l := range []*Listener{early, late, latest} {
		if l.gate.open {
			t.Errorf("%s is open", l.sock.Name)
		}
	}
}

func TestListenConfigOpensTheSockets(t *testing.T) {
	var opened []string
	o := Options{ListenConfig: &net.ListenConfig{Control: func(network, address string, _ syscall.RawConn) error {
		opened = append(opened, network+" "+address)
		return nil
	}}}
	u := newAlone(t, o)
	hold(t, u, "a", "tcp", "127.0.0.1:0")
	hold(t, u, "b", "udp", "127.0.0.1:0")
	want := []string{"tcp4 127.0.0.1:0", "udp4 127.0.0.1:0"}
	if !slices.Equal(opened, want) {
		t.Errorf("Control saw %q, want %q", opened, want)
	}
	heir := heirOf(t, u, o)
	hold(t, heir, "a", "tcp", "127.0.0.1:0")
	hold(t, heir, "b", "udp", "127.0.0.1:0")
	if !slices.Equal(opened, want) {
		t.Errorf("Control was called for what was inherited: %q", opened[2:])
	}
	no := errors.New("no")
	u = newAlone(t, Options{ListenConfig: &net.ListenConfig{Control: func(string, string, syscall.RawConn) error { return no }}})
	if _, err := u.Listen(t.Context(), "a", "tcp", "127.0.0.1:0"); !errors.Is(err, no) {
		t.Errorf("Listen: %v", err)
	}
}
