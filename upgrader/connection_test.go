//go:build unix

package upgrader

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// join makes next the successor that u drains for, over a real channel. adopt
// is what next does with a connection; nil: what it should.
func join(t *testing.T, u, next *Upgrader, adopt func(*peer, wire.Connection, []*os.File)) {
	t.Helper()
	local, remote, err := fd.Pair()
	must(t, err)
	far, err := fd.Channel(remote)
	must(t, err)
	if adopt == nil {
		adopt = next.adopt
	}
	successor := newPeer(wire.NewConn(local), os.Getpid(), nil)
	predecessor := newPeer(wire.NewConn(far), os.Getpid(), adopt)
	for _, p := range []*peer{successor, predecessor} {
		p.ignore()
		t.Cleanup(func() { p.Close() })
	}
	u.successor.Store(successor)
}

// line is a connection from a client, accepted.
type line struct {
	client, server net.Conn
}

func connect(t *testing.T, l *Listener) line {
	t.Helper()
	c, err := net.Dial(l.Addr().Network(), l.Addr().String())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	a := within(t, "connection", acceptOne(l))
	must(t, a.err)
	t.Cleanup(func() { a.c.Close() })
	return line{c, a.c}
}

// wantTalk makes client and server talk.
func (l line) wantTalk(t *testing.T, text string) {
	t.Helper()
	for _, ends := range [][2]net.Conn{{l.client, l.server}, {l.server, l.client}} {
		_, err := io.WriteString(ends[0], text)
		must(t, err)
		b := make([]byte, len(text))
		if _, err := io.ReadFull(ends[1], b); err != nil || string(b) != text {
			t.Fatalf("%q, %v; want %q", b, err, text)
		}
	}
}

// wantAdopted returns the same line with the server that accepts it now.
func (l line) wantAdopted(t *testing.T, by *Listener) line {
	t.Helper()
	a := within(t, "connection", acceptOne(by))
	must(t, a.err)
	t.Cleanup(func() { a.c.Close() })
	return line{l.client, a.c}
}

// line of processes: each has inherited the listener of the one before.
func generations(t *testing.T, n int, network, address string) []*Listener {
	t.Helper()
	u := newAlone(t, Options{})
	ls := []*Listener{listenAs(t, u, "main", network, address)}
	settle(t, u)
	for range n - 1 {
		heir := heirOf(t, u, Options{})
		ls = append(ls, listenAs(t, heir, "main", network, address))
		u = heir
	}
	return ls
}

// replace makes the listener's process drain for the next one's.
func replace(t *testing.T, l, next *Listener) {
	t.Helper()
	take(t, l.owner, next.owner)
	join(t, l.owner, next.owner, nil)
}

func TestConnectionIsHandedOver(t *testing.T) {
	for network, address := range map[string]string{
		"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "a"), "unixpacket": filepath.Join(t.TempDir(), "b"),
	} {
		t.Run(network, func(t *testing.T) {
			ls := generations(t, 3, network, address)
			c := connect(t, ls[0])
			local, remote := c.server.LocalAddr().String(), c.server.RemoteAddr().String()
			for i := range 2 {
				c.wantTalk(t, fmt.Sprint("before ", i))
				replace(t, ls[i], ls[i+1])
				must(t, ls[i].HandOver(c.server))
				if _, err := c.server.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
					t.Errorf("the old process's copy is open: %v", err)
				}
				if ls[i].Adopted(c.server) != (i > 0) {
					t.Errorf("in generation %d adopted: %v", i+1, i == 0)
				}
				c = c.wantAdopted(t, ls[i+1])
				if !ls[i+1].Adopted(c.server) {
					t.Error("it is taken for a new connection")
				}
				c.wantTalk(t, fmt.Sprint("after ", i))
				if c.server.LocalAddr().String() != local || c.server.RemoteAddr().String() != remote {
					t.Errorf("from %v to %v, was from %s to %s", c.server.RemoteAddr(), c.server.LocalAddr(), remote, local)
				}
				sc, ok := c.server.(syscall.Conn)
				if !ok {
					t.Fatalf("%T", c.server)
				}
				wantFlags(t, sc)
			}
			must(t, c.server.Close())
			if _, err := c.client.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // Read returns it bare
				t.Errorf("somebody holds the connection open: %v", err)
			}
		})
	}
}

// TestAdoptedConnectionsAreForgotten when nobody has them any more.
func TestAdoptedConnectionsAreForgotten(t *testing.T) {
	ls := generations(t, 2, "tcp", "127.0.0.1:0")
	c := connect(t, ls[0])
	replace(t, ls[0], ls[1])
	must(t, ls[0].HandOver(c.server))
	a := within(t, "connection", acceptOne(ls[1]))
	must(t, a.err)
	must(t, a.c.Close())
	if !ls[1].Adopted(a.c) {
		t.Error("forgotten while it is there")
	}
	if ls[1].Adopted(c.server) || ls[1].Adopted(nil) || ls[1].Adopted(&tls.Conn{}) {
		t.Error("it has adopted what it has not accepted")
	}
	left := func() (n int) {
		ls[1].adopted.set.Range(func(any, any) bool { n++; return true })
		return n
	}
	for range 100 {
		runtime.GC() // runs cleanups some time afterwards
		if left() == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d are remembered for ever", left())
}

// TestReplacedTellsAnUpgradeFromAStop by the reason of Done.
func TestReplacedTellsAnUpgradeFromAStop(t *testing.T) {
	for reason, want := range map[error]bool{ErrUpgraded: true, ErrStopped: false, ErrAborted: false, ErrRolledBack: false} {
		u := &Upgrader{done: make(chan struct{})}
		l := &Listener{owner: u}
		if l.Replaced() {
			t.Error("replaced before Done is closed")
		}
		u.err = reason
		close(u.done)
		if l.Replaced() != want {
			t.Errorf("%v: replaced: %v", reason, !want)
		}
	}
}

// TestWrappedConnectionIsNotHandedOver: what wraps it may know something.
func TestWrappedConnectionIsNotHandedOver(t *testing.T) {
	l := generations(t, 1, "tcp", "127.0.0.1:0")[0]
	c := connect(t, l)
	tcp, ok := c.server.(*net.TCPConn)
	if !ok {
		t.Fatalf("%T", c.server)
	}
	wantText(t, l.HandOver(struct{ *net.TCPConn }{tcp}), "want a *net.TCPConn or *net.UnixConn, as Accept returns it")
	c.wantTalk(t, "still there")
}

// TestConnectionThatIsNotTakenStays with the caller, as it was.
func TestConnectionThatIsNotTakenStays(t *testing.T) {
	tests := map[string]struct {
		prepare func(t *testing.T, l, next *Listener)
		text    string
	}{
		"no successor": {func(*testing.T, *Listener, *Listener) {}, "does not drain for a successor"},
		"no such listener": {func(t *testing.T, l, next *Listener) {
			l.sock.Name = "other"
			replace(t, l, next)
		}, `refused: no listener "other"`},
		"a closed listener": {func(t *testing.T, l, next *Listener) {
			replace(t, l, next)
			must(t, next.Close())
		}, `refused: no listener "main"`},
		"a packet socket of that name": {func(t *testing.T, l, next *Listener) {
			replace(t, l, next)
			must(t, next.Close())
			listenPacketAs(t, next.owner, "main", "udp", "127.0.0.1:0")
		}, `refused: no listener "main"`},
		"a stopped successor": {func(t *testing.T, l, next *Listener) {
			replace(t, l, next)
			next.owner.Stop()
		}, "refused: " + ErrStopped.Error()},
		"at the limit of descriptors": {func(t *testing.T, l, next *Listener) {
			join(t, l.owner, next.owner, func(p *peer, m wire.Connection, files []*os.File) {
				closeAll(files) // as the kernel drops them
				next.owner.adopt(p, m, nil)
			})
		}, "RLIMIT_NOFILE"},
		"a successor that dies": {func(t *testing.T, l, next *Listener) {
			join(t, l.owner, next.owner, func(p *peer, _ wire.Connection, files []*os.File) {
				closeAll(files) // as the kernel does
				p.Close()
			})
		}, errPeerGone.Error()},
		"a successor that is dead": {func(t *testing.T, l, next *Listener) {
			replace(t, l, next)
			must(t, l.owner.successor.Load().Close())
		}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ls := generations(t, 2, "tcp", "127.0.0.1:0")
			c := connect(t, ls[0])
			tt.prepare(t, ls[0], ls[1])
			for range 2 {
				err := ls[0].HandOver(c.server)
				wantText(t, err, tt.text)
				wantText(t, err, "upgrader: hand over "+c.client.LocalAddr().String())
				c.wantTalk(t, "still here")
			}
		})
	}
}

func TestConnectionThatCannotBeHandedOver(t *testing.T) {
	ls := generations(t, 2, "tcp", "127.0.0.1:0")
	c := connect(t, ls[0])
	replace(t, ls[0], ls[1])
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	for _, conn := range []net.Conn{a, tls.Server(c.server, &tls.Config{})} {
		wantText(t, ls[0].HandOver(conn), "want a *net.TCPConn or *net.UnixConn")
	}
	c.wantTalk(t, "still here")
	must(t, c.server.Close())
	if err := ls[0].HandOver(c.server); err == nil {
		t.Error("a closed connection was handed over")
	}
}

// TestWhatIsNoConnectionIsRefused: the predecessor may be another build.
func TestWhatIsNoConnectionIsRefused(t *testing.T) {
	ls := generations(t, 2, "tcp", "127.0.0.1:0")
	replace(t, ls[0], ls[1])
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	defer udp.Close()
	before := fdsBefore(t)
	for name, sc := range map[string]syscall.Conn{"a pipe": w, "a listener": ls[0].inner, "not connected": udp} {
		if err := ls[0].owner.handOver("main", sc); err == nil || !strings.Contains(err.Error(), "refused: ") {
			t.Errorf("%s: %v, want that it is refused", name, err)
		}
	}
	wantNoMoreFDs(t, before)
	if flags(t, w)&syscall.O_CLOEXEC == 0 {
		t.Error("the pipe was touched")
	}
}

// TestConnectionGoesOnToTheNextGeneration: its receiver has been replaced
// meanwhile. It goes all the way, and a no comes all the way back.
func TestConnectionGoesOnToTheNextGeneration(t *testing.T) {
	ls := generations(t, 4, "tcp", "127.0.0.1:0")
	first, second := connect(t, ls[0]), connect(t, ls[0])
	for i := range 3 {
		replace(t, ls[i], ls[i+1])
	}
	must(t, ls[0].HandOver(first.server))
	first.wantAdopted(t, ls[3]).wantTalk(t, "in the fourth")
	must(t, ls[3].Close())
	wantText(t, ls[0].HandOver(second.server), `no listener "main"`)
	second.wantTalk(t, "still in the first")
	must(t, ls[2].owner.successor.Load().Close())
	if err := ls[0].HandOver(second.server); err == nil {
		t.Error("handed over to nobody")
	}
	second.wantTalk(t, "still in the first")
}

// TestQueueThatIsLeftGoesOn: what was handed over and not accepted when the
// listener is closed.
func TestQueueThatIsLeftGoesOn(t *testing.T) {
	ls := generations(t, 3, "tcp", "127.0.0.1:0")
	replace(t, ls[0], ls[1])
	var lines []line
	for range 5 {
		ls[0].gate.set(true)
		c := connect(t, ls[0])
		must(t, ls[0].HandOver(c.server))
		lines = append(lines, c)
	}
	replace(t, ls[1], ls[2])
	must(t, ls[1].Close())
	for _, c := range lines {
		c.wantAdopted(t, ls[2]).wantTalk(t, "in the third")
	}
}

// TestQueueThatIsLeftToNobodyIsClosed, so that no client waits for ever.
func TestQueueThatIsLeftToNobodyIsClosed(t *testing.T) {
	ls := generations(t, 2, "tcp", "127.0.0.1:0")
	c := connect(t, ls[0])
	replace(t, ls[0], ls[1])
	must(t, ls[0].HandOver(c.server))
	must(t, ls[1].Close())
	if _, err := c.client.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // Read returns it bare
		t.Errorf("%v, want EOF", err)
	}
}

// TestListenerThatIsClosedAsItTakes: the promise is kept by the next generation,
// if there is one.
func TestListenerThatIsClosedAsItTakes(t *testing.T) {
	for _, replaced := range []bool{false, true} {
		t.Run(fmt.Sprintf("replaced %v", replaced), func(t *testing.T) {
			ls := generations(t, 3, "tcp", "127.0.0.1:0")
			c := connect(t, ls[0])
			rc, ok := c.server.(syscall.Conn)
			if !ok {
				t.Fatalf("%T", c.server)
			}
			f, err := fd.Dup(rc, "connection")
			must(t, err)
			must(t, c.server.Close())
			l := newLink(t)
			l.watch(func(wire.Message) { // taken is on its way, and nothing can be taken back
				if replaced {
					replace(t, ls[1], ls[2])
				}
				must(t, ls[1].Close())
			})
			ls[1].owner.adopt(newPeer(l, 1, nil), wire.Connection{ID: 1, Listener: "main"}, []*os.File{f})
			if m := wantHears[wire.Taken](l); m.ID != 1 {
				t.Errorf("answered %+v", m)
			}
			if replaced {
				c.wantAdopted(t, ls[2]).wantTalk(t, "in the third")
			} else if _, err := c.client.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // Read returns it bare
				t.Errorf("%v, want EOF", err)
			}
		})
	}
}

// TestUnansweredConnectionIsNotTouched: the predecessor is gone, or thinks that
// this process hangs, and keeps it.
func TestUnansweredConnectionIsNotTouched(t *testing.T) {
	ls := generations(t, 2, "tcp", "127.0.0.1:0")
	c := connect(t, ls[0])
	rc, ok := c.server.(syscall.Conn)
	if !ok {
		t.Fatalf("%T", c.server)
	}
	before := fdsBefore(t)
	f, err := fd.Dup(rc, "connection")
	must(t, err)
	l := newLink(t)
	l.end()
	ls[1].owner.adopt(newPeer(l, 1, nil), wire.Connection{ID: 1, Listener: "main"}, []*os.File{f})
	wantNoMoreFDs(t, before)
	if len(ls[1].gate.adopted) > 0 {
		t.Error("it is accepted here")
	}
	c.wantTalk(t, "still here")
}

func TestHandingOverLeaksNoDescriptor(t *testing.T) {
	ls := generations(t, 2, "tcp", "127.0.0.1:0")
	replace(t, ls[0], ls[1])
	ls[0].gate.set(true)
	ls[1].gate.set(false) // what is handed over is accepted all the same
	before := fdsBefore(t)
	for i := range 200 {
		d, err := net.Dial("tcp", ls[0].Addr().String())
		must(t, err)
		a := within(t, "connection", acceptOne(ls[0]))
		must(t, a.err)
		if i%2 == 0 {
			must(t, ls[0].HandOver(a.c))
			b := within(t, "connection", acceptOne(ls[1]))
			must(t, b.err)
			must(t, b.c.Close())
		} else {
			ls[0].sock.Name = "other"
			if err := ls[0].HandOver(a.c); err == nil {
				t.Fatal("taken by nobody")
			}
			ls[0].sock.Name = "main"
			must(t, a.c.Close())
		}
		must(t, d.Close())
	}
	wantNoMoreFDs(t, before)
}
