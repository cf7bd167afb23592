//go:build unix

package upgrader

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// number is a connection whose descriptor has that number, and nothing else.
type number uintptr

func (n number) SyscallConn() (syscall.RawConn, error) { return n, nil }
func (n number) Control(f func(uintptr)) error         { f(uintptr(n)); return nil }
func (n number) Read(func(uintptr) bool) error         { panic("nobody reads") }
func (n number) Write(func(uintptr) bool) error        { panic("nobody writes") }

// handingOver calls handOver, and returns where its answer comes.
func handingOver(p *peer, name string, c syscall.Conn) <-chan error {
	result := make(chan error, 1)
	go func() { result <- p.handOver(name, c) }()
	synctest.Wait()
	return result
}

func wantNoAnswer(t *testing.T, result <-chan error) {
	t.Helper()
	synctest.Wait()
	if len(result) > 0 {
		t.Fatalf("answered: %v", <-result)
	}
}

func TestHandOverWaitsForTheAnswer(t *testing.T) {
	answers := map[string]struct {
		answer func(id uint64) wire.Message
		want   string
	}{
		"taken":   {func(id uint64) wire.Message { return wire.Taken{ID: id} }, ""},
		"refused": {func(id uint64) wire.Message { return wire.Refused{ID: id, Reason: "no room"} }, "refused: no room"},
	}
	for name, tt := range answers {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLink(t)
				p := newPeer(l, 1, nil)
				result := handingOver(p, "main", number(7))
				m := wantHears[wire.Connection](l)
				if m.Listener != "main" || !slices.Equal(l.rights, []int{7}) {
					t.Errorf("%+v was sent with the descriptors %v", m, l.rights)
				}
				l.say(wire.Taken{ID: m.ID + 1}, wire.Refused{ID: 0}) // nobody asked
				time.Sleep(handOverTimeout - 1)
				wantNoAnswer(t, result)
				l.say(tt.answer(m.ID))
				if err := <-result; fmt.Sprint(err) != tt.want && (err != nil || tt.want != "") {
					t.Errorf("%v, want %q", err, tt.want)
				}
				l.say(wire.Refused{ID: m.ID}, wire.Taken{ID: m.ID}) // again: nobody asks
				time.Sleep(time.Hour)
				if isDone(l.ended) {
					t.Error("the timeout of what was answered has an effect")
				}
			})
		})
	}
}

func isDone(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestAnswersFindTheirQuestion, in whatever order they come.
func TestAnswersFindTheirQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink(t)
		p := newPeer(l, 1, nil)
		results := map[uint64]<-chan error{}
		for i := range 20 {
			result := handingOver(p, "main", number(100+i))
			results[wantHears[wire.Connection](l).ID] = result
		}
		if len(results) != 20 {
			t.Fatalf("%d different questions, want 20", len(results))
		}
		for id, result := range results {
			wantNoAnswer(t, result)
			if id%2 == 0 {
				l.say(wire.Taken{ID: id})
			} else {
				l.say(wire.Refused{ID: id})
			}
			if err := <-result; (err == nil) != (id%2 == 0) {
				t.Errorf("%d: %v", id, err)
			}
		}
		if len(p.answers) > 0 {
			t.Errorf("%d questions are left", len(p.answers))
		}
	})
}

// TestPeerThatHangs can say yes no more after the limit, and what it has said
// already counts: every answer is certain.
func TestPeerThatHangs(t *testing.T) {
	t.Run("says nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLink(t)
			p := newPeer(l, 1, nil)
			result, other := handingOver(p, "main", number(7)), handingOver(p, "main", number(8))
			time.Sleep(handOverTimeout - 1)
			wantNoAnswer(t, result)
			if isDone(l.ended) {
				t.Error("the reading side is shut too early")
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if !isDone(l.ended) {
				t.Error("the reading side is open")
			}
			for _, result := range []<-chan error{result, other} {
				if err := <-result; !errors.Is(err, errPeerGone) {
					t.Errorf("%v, want errPeerGone", err)
				}
			}
			if _, open := <-p.inbox; open {
				t.Error("the inbox is open")
			}
		})
	})
	t.Run("has just answered", func(t *testing.T) {
		for range 100 {
			synctest.Test(t, func(t *testing.T) {
				l := newLink(t)
				p := newPeer(l, 1, nil)
				p.ignore()
				result := handingOver(p, "main", number(7))
				id := wantHears[wire.Connection](l).ID
				time.AfterFunc(handOverTimeout, func() { l.said <- wire.Taken{ID: id} }) // at the same instant
				if err := <-result; err == nil {
					return
				}
				// No: then the reading side was shut before it was said.
				synctest.Wait()
				if len(l.said) == 0 {
					t.Error("taken, and told that it was not")
				}
			})
		}
	})
}

func TestPeerThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink(t)
		p := newPeer(l, 1, nil)
		result := handingOver(p, "main", number(7))
		l.end()
		if err := <-result; err != errPeerGone { //nolint:errorlint // as it is
			t.Errorf("%v, want errPeerGone", err)
		}
		if err := p.handOver("main", number(7)); err != errPeerGone { //nolint:errorlint // as it is
			t.Errorf("%v, want errPeerGone", err)
		}
		if n := len(l.sent()); n != 1 {
			t.Errorf("%d connections were sent, want 1", n)
		}
		p.answer(1, nil) // too late
	})
}

// TestPeerThatTakesBeforeItEnds: its word is read.
func TestPeerThatTakesBeforeItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink(t)
		p := newPeer(l, 1, nil)
		result := handingOver(p, "main", number(7))
		l.said <- wire.Taken{ID: wantHears[wire.Connection](l).ID}
		l.end()
		if err := <-result; err != nil {
			t.Error(err)
		}
	})
}

func TestConnectionThatCannotBeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink(t)
		p := newPeer(l, 1, nil)
		l.deafen()
		begun := time.Now()
		err := p.handOver("main", number(7))
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) != wire.SendTimeout {
			t.Errorf("%v after %v, want the error of Send", err, time.Since(begun))
		}
		if len(p.answers) > 0 {
			t.Error("the question is left")
		}
	})
}

func TestClosedConnectionIsNotSent(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	must(t, err)
	must(t, c.Close())
	l := newLink(t)
	p := newPeer(l, 1, nil)
	tc, ok := c.(*net.TCPConn)
	if !ok {
		t.Fatalf("%T", c)
	}
	if err := p.handOver("main", tc); err == nil {
		t.Error("no error")
	}
	if sent := l.sent(); len(sent) > 0 {
		t.Errorf("%v was sent", sent)
	}
}

// TestWordsComeBeforeTheEnd, all of them, in order.
func TestWordsComeBeforeTheEnd(t *testing.T) {
	endings := map[string]struct {
		err    error
		broken bool
	}{
		"it died":               {io.EOF, false},
		"inside a frame":        {io.ErrUnexpectedEOF, false},
		"with words unread":     {syscall.ECONNRESET, false},
		"while it was told":     {&os.SyscallError{Syscall: "write", Err: syscall.EPIPE}, false},
		"by what is no message": {&wire.UnknownTypeError{Type: "later"}, true},
	}
	for name, tt := range endings {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLink(t)
				p := newPeer(l, 1, nil)
				said := []wire.Message{wire.Progress{Text: "1"}, wire.Ready{}, wire.Progress{Text: "2"}, wire.Failed{Text: "3"}}
				for _, m := range said {
					l.said <- m
				}
				l.breakWith(tt.err)
				var heard []wire.Message
				for m := range p.inbox {
					heard = append(heard, m)
				}
				if !slices.Equal(heard, said) {
					t.Errorf("heard %v, want %v", heard, said)
				}
				if tt.broken != (p.err != nil) || tt.broken && !errors.Is(p.err, tt.err) {
					t.Errorf("err is %v", p.err)
				}
			})
		})
	}
}

// TestPeerThatIsIgnored is still read, so that it does not wait for room.
func TestPeerThatIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink(t)
		p := newPeer(l, 1, nil)
		p.ignore()
		for range 1000 {
			l.said <- wire.Progress{}
			synctest.Wait()
			if len(l.said) > 0 {
				t.Fatal("not read")
			}
		}
	})
}

// TestUnwantedConnectionIsClosed: a successor has none to give.
func TestUnwantedConnectionIsClosed(t *testing.T) {
	local, remote, err := fd.Pair()
	must(t, err)
	far, err := fd.Channel(remote)
	must(t, err)
	conn := wire.NewConn(far)
	defer conn.Close()
	p := newPeer(wire.NewConn(local), 1, nil)
	defer p.Close()
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	rc, err := w.SyscallConn()
	must(t, err)
	must(t, rc.Control(func(fd uintptr) { err = conn.Send(wire.Connection{ID: 1, Listener: "main"}, int(fd)) }))
	must(t, err)
	must(t, conn.Send(wire.Ready{}))
	if m := within(t, "message", p.inbox); m != (wire.Ready{}) {
		t.Errorf("%T", m)
	}
	must(t, w.Close())
	_ = r.SetReadDeadline(time.Now().Add(patience))
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection's descriptor is open: %v", err)
	}
}
