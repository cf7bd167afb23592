//go:build unix

package upgrader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-handover/handover/internal/wire"
)

// newAlone returns an Upgrader without a predecessor, not ready yet. It stops
// with the test.
func newAlone(t testing.TB, o Options) *Upgrader {
	t.Helper()
	u, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		u.Stop()
		u.sockets.end()
	})
	return u
}

// end closes what the end of a process would.
func (ss *sockets) end() {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, s := range ss.named {
		ss.moved = append(ss.moved, s)
	}
	for _, s := range ss.moved {
		if s.parked != nil {
			_ = s.parked.Close()
		}
		if c, ok := s.conn.(io.Closer); ok {
			_ = c.Close()
		}
	}
}

// bequestOf is what an attempt gives its successor. The attempt ends with it.
func bequestOf(u *Upgrader) ([]wire.Socket, []*os.File, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	return u.bequest(ctx)
}

// heirOf returns the Upgrader of a process that has inherited all that u
// holds, as if u had executed it.
func heirOf(t testing.TB, u *Upgrader, o Options) *Upgrader {
	t.Helper()
	meta, files, err := bequestOf(u)
	if err != nil {
		t.Fatal(err)
	}
	heir := newAlone(t, o)
	heir.generation.Store(u.generation.Load() + 1)
	for i, f := range files {
		if err := heir.sockets.park(&socket{Socket: meta[i], parked: f, inherited: true}); err != nil {
			t.Fatal(err)
		}
	}
	return heir
}

func listenAs(t testing.TB, u *Upgrader, name, network, address string) *Listener {
	t.Helper()
	ln, err := u.Listen(context.Background(), name, network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	l, ok := ln.(*Listener)
	if !ok {
		t.Fatalf("Listen returns a %T", ln)
	}
	return l
}

func listenPacketAs(t testing.TB, u *Upgrader, name, network, address string) *PacketConn {
	t.Helper()
	pc, err := u.ListenPacket(context.Background(), name, network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	p, ok := pc.(*PacketConn)
	if !ok {
		t.Fatalf("ListenPacket returns a %T", pc)
	}
	return p
}

// pair returns two listeners of two processes over one socket, both closed.
func pair(t testing.TB) (a, b *Listener) {
	t.Helper()
	u := newAlone(t, Options{})
	a = listenAs(t, u, "main", "tcp", "127.0.0.1:0")
	b = listenAs(t, heirOf(t, u, Options{}), "main", "tcp", "127.0.0.1:0")
	if a.Addr().String() != b.Addr().String() {
		t.Fatalf("%v and %v are not one socket", a.Addr(), b.Addr())
	}
	return a, b
}

// accepts counts what a listener accepts, in as many goroutines.
type accepts struct {
	n     atomic.Int64
	one   chan struct{} // for each, while there is room
	ended sync.WaitGroup
	errs  chan error
}

// serveAs accepts until an error, and greets each client with the greeting.
func serveAs(l net.Listener, greeting string, goroutines int) *accepts {
	a := &accepts{one: make(chan struct{}, 1), errs: make(chan error, goroutines)}
	for range goroutines {
		a.ended.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					a.errs <- err
					return
				}
				a.n.Add(1)
				_, _ = io.WriteString(c, greeting)
				_ = c.Close()
				select {
				case a.one <- struct{}{}:
				default:
				}
			}
		})
	}
	return a
}

// greeting connects, and returns who answers.
func greeting(addr net.Addr) (string, error) {
	c, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(c)
	return string(b), err
}

// patience bounds every wait for an event. It is for a test that hangs.
const patience = 30 * time.Second

// within waits for an event.
func within[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s in %v", what, patience)
		panic("unreachable")
	}
}

func wantGreeting(t *testing.T, addr net.Addr, want string) {
	t.Helper()
	if got, err := greeting(addr); got != want || err != nil {
		t.Fatalf("%q answers, %v; want %q", got, err, want)
	}
}

// accepted is what a call of Accept returned.
type accepted struct {
	c   net.Conn
	err error
}

func acceptOne(l net.Listener) <-chan accepted {
	result := make(chan accepted, 1)
	go func() {
		c, err := l.Accept()
		result <- accepted{c, err}
	}()
	return result
}

// TestConnectionsWaitInTheKernelsQueue while the gate is closed, in order.
func TestConnectionsWaitInTheKernelsQueue(t *testing.T) {
	l := listenAs(t, newAlone(t, Options{}), "main", "tcp", "127.0.0.1:0")
	first := acceptOne(l)
	for i := range 10 {
		c, err := net.Dial("tcp", l.Addr().String())
		must(t, err)
		defer c.Close()
		_, err = fmt.Fprintln(c, i)
		must(t, err)
	}
	select {
	case a := <-first:
		t.Fatalf("Accept has returned %v, %v at a closed gate", a.c, a.err)
	default:
	}
	l.gate.set(true)
	for i := range 10 {
		a := within(t, "connection", first)
		must(t, a.err)
		defer a.c.Close()
		line := make([]byte, 2)
		if _, err := io.ReadFull(a.c, line); err != nil || string(line) != strconv.Itoa(i)+"\n" {
			t.Errorf("connection %d said %q, %v", i, line, err)
		}
		if i < 9 {
			first = acceptOne(l)
		}
	}
}

// TestClosedGateTakesNoConnection: the other process takes them all, though
// this one waits as well.
func TestClosedGateTakesNoConnection(t *testing.T) {
	a, b := pair(t)
	byA, byB := serveAs(a, "a", 3), serveAs(b, "b", 3)
	b.gate.set(true)
	for range 100 {
		wantGreeting(t, a.Addr(), "b")
	}
	if n := byA.n.Load(); n != 0 || byB.n.Load() != 100 {
		t.Errorf("the closed one took %d, the open one %d", n, byB.n.Load())
	}
}

// TestClosingInterruptsAParkedAccept. One that was just starting may take one
// more connection; then none is taken until the gate is open again.
func TestClosingInterruptsAParkedAccept(t *testing.T) {
	a, b := pair(t)
	serveAs(a, "a", 3)
	serveAs(b, "b", 3)
	from, to, name := b, a, "a"
	for range 100 {
		from.gate.set(false)
		to.gate.set(true)
		late := 0
		for range 5 {
			got, err := greeting(a.Addr())
			must(t, err)
			if got != name {
				late++
			}
		}
		if late > 1 {
			t.Fatalf("the closed one took %d", late)
		}
		from, to = to, from
		if to == a {
			name = "a"
		} else {
			name = "b"
		}
	}
}

// TestAlternatingGatesLoseNobody: every client is accepted exactly once, by one
// of two processes, however the gates move.
func TestAlternatingGatesLoseNobody(t *testing.T) {
	a, b := pair(t)
	byA, byB := serveAs(a, "a", 2), serveAs(b, "b", 2)
	a.gate.set(true)
	over := make(chan struct{})
	var clients sync.WaitGroup
	var greeted atomic.Int64
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				got, err := greeting(a.Addr())
				if err != nil || got != "a" && got != "b" {
					t.Errorf("%q, %v; want one greeting", got, err)
					return
				}
				greeted.Add(1)
			}
		})
	}
	from, to, byTo := a, b, byB
	for range 1000 {
		to.gate.set(true)
		from.gate.set(false)
		select { // so that clients and gates take turns
		case <-byTo.one:
		case <-time.After(patience):
			t.Fatal("nobody is served")
		}
		from, to = to, from
		if byTo == byB {
			byTo = byA
		} else {
			byTo = byB
		}
	}
	close(over)
	clients.Wait()
	if n := byA.n.Load() + byB.n.Load(); n != greeted.Load() {
		t.Errorf("%d accepted, %d greeted", n, greeted.Load())
	}
	if byA.n.Load() < 500 || byB.n.Load() < 500 {
		t.Errorf("%d and %d accepted: the gates did not alternate", byA.n.Load(), byB.n.Load())
	}
}

func TestDeliveredConnectionIsAccepted(t *testing.T) {
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprintf("open %v", open), func(t *testing.T) {
			l := listenAs(t, newAlone(t, Options{}), "main", "tcp", "127.0.0.1:0")
			l.gate.set(open)
			for range 100 {
				result := acceptOne(l)
				c, other := net.Pipe()
				if !l.gate.deliver(c) {
					t.Fatal("refused")
				}
				if a := within(t, "connection", result); a.c != c {
					t.Fatalf("Accept returns %v, %v", a.c, a.err)
				}
				other.Close()
			}
			// The interruption is over: what comes from the kernel is accepted.
			l.gate.set(true)
			serveAs(l, "l", 1)
			wantGreeting(t, l.Addr(), "l")
		})
	}
}

// TestDeliveredConnectionsComeBeforeTheQueue, each once, to many goroutines.
func TestDeliveredConnectionsComeBeforeTheQueue(t *testing.T) {
	l := listenAs(t, newAlone(t, Options{}), "main", "tcp", "127.0.0.1:0")
	l.gate.set(true)
	got := make(chan net.Conn, 1000)
	for range 4 {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				got <- c
			}
		}()
	}
	seen := map[net.Conn]bool{}
	for range 500 {
		c, _ := net.Pipe()
		l.gate.deliver(c)
		seen[c] = false
		d, err := net.Dial("tcp", l.Addr().String())
		must(t, err)
		d.Close()
	}
	kernel := 0
	for range 1000 {
		c := within(t, "connection", got)
		if taken, delivered := seen[c]; taken {
			t.Fatal("delivered twice")
		} else if delivered {
			seen[c] = true
		} else {
			kernel++
		}
		c.Close()
	}
	if kernel != 500 {
		t.Errorf("%d from the queue, want 500", kernel)
	}
}

func TestClosedListenerTakesNoDelivery(t *testing.T) {
	l := listenAs(t, newAlone(t, Options{}), "main", "tcp", "127.0.0.1:0")
	must(t, l.Close())
	c, _ := net.Pipe()
	if l.gate.deliver(c) {
		t.Error("delivered to a closed listener")
	}
}

// TestEveryChangeWakesThoseWhoWait at a closed gate, all of them.
func TestEveryChangeWakesThoseWhoWait(t *testing.T) {
	changes := map[string]struct {
		change func(*gate)
		want   error
	}{
		"it opens":    {func(g *gate) { g.set(true) }, nil},
		"a deadline":  {func(g *gate) { _ = g.setDeadline(aLongTimeAgo) }, os.ErrDeadlineExceeded},
		"it is shut":  {func(g *gate) { g.shut() }, net.ErrClosed},
		"connections": {func(g *gate) { g.deliver(&net.TCPConn{}); g.deliver(&net.TCPConn{}) }, nil},
	}
	for name, tt := range changes {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGate(false, func(time.Time) error { return nil })
				passed := make(chan error, 2)
				for range 2 {
					go func() {
						_, err := g.pass()
						passed <- err
					}()
				}
				synctest.Wait()
				if len(passed) > 0 {
					t.Fatalf("passed a closed gate: %v", <-passed)
				}
				tt.change(g)
				for range 2 {
					if err := <-passed; !errors.Is(err, tt.want) {
						t.Errorf("%v, want %v", err, tt.want)
					}
				}
			})
		})
	}
}

// TestClosedGateKeepsTheSocketInterrupted, whatever deadline the user sets: a
// system call that is just starting must not wait in the kernel.
func TestClosedGateKeepsTheSocketInterrupted(t *testing.T) {
	var deadline time.Time // the socket's
	g := newGate(true, func(d time.Time) error { deadline = d; return nil })
	g.set(false)
	must(t, g.setDeadline(time.Now().Add(time.Hour)))
	must(t, g.setDeadline(time.Time{}))
	if !deadline.Equal(aLongTimeAgo) {
		t.Errorf("the socket's deadline is %v, want one in the past", deadline)
	}
	g.set(true)
	if _, err := g.pass(); err != nil || !deadline.IsZero() {
		t.Errorf("%v; the socket's deadline is %v, want the user's", err, deadline)
	}
}

// ---- Close ----

func TestCloseClosesTheDescriptor(t *testing.T) {
	u := newAlone(t, Options{})
	before := fdsBefore(t)
	l := listenAs(t, u, "main", "tcp", "127.0.0.1:0")
	p := listenPacketAs(t, u, "dns", "udp", "127.0.0.1:0")
	must(t, l.Close())
	must(t, p.Close())
	wantNoMoreFDs(t, before)
}

func TestCloseEndsEveryAccept(t *testing.T) {
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprintf("open %v", open), func(t *testing.T) {
			l := listenAs(t, newAlone(t, Options{}), "main", "tcp", "127.0.0.1:0")
			l.gate.set(open)
			s := serveAs(l, "", 5)
			must(t, l.Close())
			for range 5 {
				wantClosedError(t, within(t, "end", s.errs))
			}
			_, err := l.Accept()
			wantClosedError(t, err)
			l.gate.set(!open) // too late
			_, err = l.Accept()
			wantClosedError(t, err)
			must(t, l.Close())
			if err := l.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
				t.Errorf("SetDeadline: %v", err)
			}
		})
	}
}

// wantClosedError: as a closed listener of package net says it.
func wantClosedError(t *testing.T, err error) {
	t.Helper()
	var op *net.OpError
	if !errors.Is(err, net.ErrClosed) || !errors.As(err, &op) || op.Op != "accept" || op.Timeout() {
		t.Errorf("Accept: %v, want net.ErrClosed in a *net.OpError", err)
	}
}

func TestCloseIsRacedByAccept(t *testing.T) {
	u := newAlone(t, Options{})
	must(t, u.Ready())
	for range 100 {
		l := listenAs(t, u, "main", "tcp", "127.0.0.1:0")
		s := serveAs(l, "", 2)
		go l.gate.set(false)
		must(t, l.Close())
		wantClosedError(t, within(t, "end", s.errs))
		wantClosedError(t, within(t, "end", s.errs))
	}
}

// ---- deadlines ----

func wantTimeout(t *testing.T, err error) {
	t.Helper()
	var ne net.Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
		t.Fatalf("%v, want a timeout", err)
	}
}

// TestDeadlineOfTheUser is kept by the gate, whatever it does with the
// socket's own.
func TestDeadlineOfTheUser(t *testing.T) {
	past := time.Now().Add(-time.Second)
	tests := map[string]func(*Listener){
		"past, open":   func(l *Listener) { l.gate.set(true); must(t, l.SetDeadline(past)) },
		"past, closed": func(l *Listener) { must(t, l.SetDeadline(past)) },
		"past, then closed, then opened": func(l *Listener) {
			l.gate.set(true)
			must(t, l.SetDeadline(past))
			l.gate.set(false)
			l.gate.set(true)
		},
		"past, then opened":   func(l *Listener) { must(t, l.SetDeadline(past)); l.gate.set(true) },
		"future, open":        func(l *Listener) { l.gate.set(true); must(t, l.SetDeadline(time.Now().Add(time.Millisecond))) },
		"future, closed":      func(l *Listener) { must(t, l.SetDeadline(time.Now().Add(time.Millisecond))) },
		"future, then opened": func(l *Listener) { must(t, l.SetDeadline(time.Now().Add(time.Millisecond))); l.gate.set(true) },
		"without a monotonic clock": func(l *Listener) {
			l.gate.set(true)
			must(t, l.SetDeadline(time.Now().Add(time.Millisecond).Round(0)))
		},
	}
	for name, set := range tests {
		t.Run(name, func(t *testing.T) {
			l := listenAs(t, newAlone(t, Options{}), "main", "tcp", "127.0.0.1:0")
			set(l)
			for range 3 {
				wantTimeout(t, within(t, "timeout", acceptOne(l)).err)
			}
			must(t, l.SetDeadline(time.Time{}))
			l.gate.set(true)
			serveAs(l, "l", 1)
			wantGreeting(t, l.Addr(), "l")
		})
	}
}

// TestDeadlineWakesAParkedAccept, at the gate and in the kernel.
func TestDeadlineWakesAParkedAccept(t *testing.T) {
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprintf("open %v", open), func(t *testing.T) {
			l := listenAs(t, newAlone(t, Options{}), "main", "tcp", "127.0.0.1:0")
			l.gate.set(open)
			for range 100 {
				result := acceptOne(l)
				must(t, l.SetDeadline(time.Now().Add(100*time.Microsecond)))
				wantTimeout(t, within(t, "timeout", result).err)
				must(t, l.SetDeadline(time.Time{}))
			}
		})
	}
}

// TestGateNeverShowsItsOwnTimeout to those who wait, with or without a deadline
// of theirs.
func TestGateNeverShowsItsOwnTimeout(t *testing.T) {
	for _, deadline := range []time.Time{{}, time.Now().Add(time.Hour)} {
		l := listenAs(t, newAlone(t, Options{}), "main", "tcp", "127.0.0.1:0")
		must(t, l.SetDeadline(deadline))
		s := serveAs(l, "l", 3)
		for range 1000 {
			l.gate.set(true)
			l.gate.set(false)
		}
		l.gate.set(true)
		wantGreeting(t, l.Addr(), "l")
		select {
		case err := <-s.errs:
			t.Errorf("Accept: %v", err)
		default:
		}
	}
}

// TestDeadlineAtAClosedGateIsExact, at virtual time.
func TestDeadlineAtAClosedGateIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(false, func(time.Time) error { return nil })
		wait := func() (took time.Duration, err error) {
			begun := time.Now()
			_, err = g.pass()
			return time.Since(begun), err
		}
		must(t, g.setDeadline(time.Now().Add(time.Minute)))
		if took, err := wait(); took != time.Minute || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v after %v", err, took)
		}
		// Put off twice while somebody waits, once earlier and once later.
		must(t, g.setDeadline(time.Now().Add(time.Hour)))
		time.AfterFunc(time.Second, func() { must(t, g.setDeadline(time.Now().Add(time.Second))) })
		time.AfterFunc(1500*time.Millisecond, func() { must(t, g.setDeadline(time.Now().Add(time.Minute))) })
		if took, err := wait(); took != time.Minute+1500*time.Millisecond || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v after %v", err, took)
		}
		must(t, g.setDeadline(time.Time{}))
		time.AfterFunc(time.Hour, func() { g.set(true) })
		if took, err := wait(); took != time.Hour || err != nil {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// TestClockThatIsSetBack does not make Accept spin: a deadline counts from when
// it was set, as that of a socket does.
func TestClockThatIsSetBack(t *testing.T) {
	g := newGate(true, func(time.Time) error { return nil })
	must(t, g.setDeadline(time.Now().Add(time.Hour).Round(0))) // the wall clock's time only
	if g.deadline == g.deadline.Round(0) {                     //nolint:staticcheck // the monotonic reading is what differs
		t.Error("the deadline moves with the wall clock")
	}
}

// ---- packets ----

func TestPacketsWaitInTheKernelsBuffer(t *testing.T) {
	for _, network := range []string{"udp", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			address := "127.0.0.1:0"
			if network == "unixgram" {
				address = filepath.Join(t.TempDir(), "p.sock")
			}
			u := newAlone(t, Options{})
			a := listenPacketAs(t, u, "main", network, address)
			b := listenPacketAs(t, heirOf(t, u, Options{}), "main", network, address)
			type packet struct {
				by   *PacketConn
				text string
			}
			got := make(chan packet, 100)
			for _, p := range []*PacketConn{a, a, b, b} {
				go func() {
					buf := make([]byte, 100)
					for {
						n, _, err := p.ReadFrom(buf)
						if err != nil {
							return
						}
						got <- packet{p, string(buf[:n])}
					}
				}()
			}
			c, err := net.Dial(network, a.LocalAddr().String())
			must(t, err)
			defer c.Close()
			from, to := b, a
			for i := range 100 {
				from.gate.set(false)
				late := 0
				for j := range 5 {
					text := fmt.Sprint("packet ", 5*i+j)
					_, err := io.WriteString(c, text)
					must(t, err)
					to.gate.set(true)
					p := within(t, "packet", got)
					if p.text != text {
						t.Fatalf("%q, want %q", p.text, text)
					}
					if p.by != to {
						late++ // it was just starting
					}
				}
				if late > 1 {
					t.Fatalf("the closed one took %d", late)
				}
				from, to = to, from
			}
		})
	}
}

// TestReplacedProcessCanStillAnswer a packet.
func TestReplacedProcessCanStillAnswer(t *testing.T) {
	p := listenPacketAs(t, newAlone(t, Options{}), "main", "udp", "127.0.0.1:0")
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	defer c.Close()
	if _, err := p.WriteTo([]byte("answer"), c.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if n, from, err := c.ReadFrom(buf); err != nil || string(buf[:n]) != "answer" || from.String() != p.LocalAddr().String() {
		t.Errorf("%q from %v, %v", buf[:n], from, err)
	}
}

func TestPacketConnEnds(t *testing.T) {
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprintf("open %v", open), func(t *testing.T) {
			p := listenPacketAs(t, newAlone(t, Options{}), "main", "udp", "127.0.0.1:0")
			p.gate.set(open)
			read := func() <-chan error {
				result := make(chan error, 1)
				go func() {
					_, _, err := p.ReadFrom(make([]byte, 1))
					result <- err
				}()
				return result
			}
			parked := read()
			must(t, p.SetReadDeadline(time.Now().Add(-time.Second)))
			wantTimeout(t, within(t, "timeout", parked))
			must(t, p.SetReadDeadline(time.Time{}))
			parked = read()
			must(t, p.SetDeadline(time.Now().Add(time.Millisecond)))
			wantTimeout(t, within(t, "timeout", parked))
			must(t, p.SetDeadline(time.Time{}))
			parked = read()
			must(t, p.Close())
			var op *net.OpError
			if err := within(t, "end", parked); !errors.Is(err, net.ErrClosed) || !errors.As(err, &op) || op.Op != "read" {
				t.Errorf("ReadFrom: %v, want net.ErrClosed", err)
			}
			must(t, p.Close())
		})
	}
}

// ---- what the gate costs, and what it leaves alone ----

// flags returns the descriptor's flags as open(2) takes them.
func flags(t testing.TB, c syscall.Conn) int {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info []byte
	ctlErr := rc.Control(func(fd uintptr) { info, err = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd)) })
	if err := errors.Join(ctlErr, err); err != nil {
		t.Skip("the flags of a descriptor are read from /proc:", err)
	}
	_, rest, _ := strings.Cut(string(info), "flags:")
	octal, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	n, err := strconv.ParseInt(octal, 8, 64)
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

func wantFlags(t testing.TB, c syscall.Conn) {
	t.Helper()
	got := flags(t, c)
	if got&syscall.O_NONBLOCK == 0 {
		t.Error("O_NONBLOCK is not set")
	}
	if got&syscall.O_CLOEXEC == 0 {
		t.Error("close-on-exec is not set")
	}
}

// TestSharedSocketStaysNonblocking through all that a gate does.
func TestSharedSocketStaysNonblocking(t *testing.T) {
	a, b := pair(t)
	wantFlags(t, a)
	wantFlags(t, b)
	serveAs(a, "a", 2)
	serveAs(b, "b", 2)
	a.gate.set(true)
	wantGreeting(t, a.Addr(), "a")
	a.gate.set(false)
	b.gate.set(true)
	if _, err := greeting(a.Addr()); err != nil {
		t.Fatal(err)
	}
	must(t, b.SetDeadline(time.Now()))
	wantFlags(t, a)
	wantFlags(t, b)
	must(t, a.Close())
	wantFlags(t, b)
}

// TestOpenGateIsPassedWithoutALock, and without an allocation.
func TestOpenGateIsPassedWithoutALock(t *testing.T) {
	g := newGate(true, func(time.Time) error { return nil })
	pass := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if c, err := g.pass(); c != nil || err != nil {
			t.Fatal(c, err)
		}
	}
	if n := testing.AllocsPerRun(1000, pass); n != 0 {
		t.Errorf("%v allocations", n)
	}
	g.set(false)
	g.set(true)
	_, err := g.pass() // the first one sees that it is open again
	must(t, err)
	pass()
}

func BenchmarkAcceptGate(b *testing.B) {
	accept := func(b *testing.B, ln net.Listener) {
		b.Helper()
		b.ReportAllocs()
		for b.Loop() {
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			s, err := ln.Accept()
			if err != nil {
				b.Fatal(err)
			}
			c.Close()
			s.Close()
		}
	}
	b.Run("bare", func(b *testing.B) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer ln.Close()
		accept(b, ln)
	})
	b.Run("gate", func(b *testing.B) {
		u := newAlone(b, Options{})
		ln := listenAs(b, u, "main", "tcp", "127.0.0.1:0")
		if err := u.Ready(); err != nil {
			b.Fatal(err)
		}
		accept(b, ln)
	})
}

// BenchmarkGatePass is what an open gate adds to Accept.
func BenchmarkGatePass(b *testing.B) {
	g := newGate(true, func(time.Time) error { return nil })
	b.ReportAllocs()
	for b.Loop() {
		_, _ = g.pass()
	}
}
