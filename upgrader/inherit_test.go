//go:build unix

package upgrader

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// testator is a predecessor whose successor is this process, as it finds itself
// after exec: descriptors open that are not close-on-exec, and the environment.
type testator struct {
	t    *testing.T
	conn *wire.Conn
	env  environment
	meta []wire.Socket
}

// newTestator leaves what u holds.
func newTestator(t *testing.T, u *Upgrader) *testator {
	t.Helper()
	local, remote, err := fd.Pair()
	must(t, err)
	defer remote.Close()
	pid, err := fd.PeerPID(local)
	must(t, err)
	w := &testator{t: t, conn: wire.NewConn(local)}
	t.Cleanup(func() { w.conn.Close() })
	w.env = environment{channel: leave(t, remote), generation: u.Generation() + 1, predecessor: pid}
	meta, files, err := u.sockets.duplicate()
	must(t, err)
	defer closeAll(files)
	w.meta = meta
	for i, f := range files {
		w.env.fds = append(w.env.fds, namedFD{meta[i].Name, leave(t, f)})
	}
	return w
}

// leave returns a duplicate that an exec leaves open.
func leave(t *testing.T, c syscall.Conn) int {
	t.Helper()
	rc, err := c.SyscallConn()
	must(t, err)
	n := -1
	must(t, rc.Control(func(fd uintptr) { n, err = syscall.Dup(int(fd)) }))
	must(t, err)
	return n
}

// closed closes what leave left, if the code under test had no reason to.
func closed(t *testing.T, n int) {
	t.Helper()
	if err := syscall.Close(n); err != nil {
		t.Errorf("descriptor %d is not open any more: %v", n, err)
	}
}

// bequeath sets the variables.
func (w *testator) bequeath() *testator {
	w.t.Helper()
	vars, err := w.env.strings()
	must(w.t, err)
	for _, kv := range vars {
		name, value, _ := strings.Cut(kv, "=")
		w.t.Setenv(name, value)
	}
	return w
}

func (w *testator) manifest() wire.Manifest {
	return wire.Manifest{Version: wire.Version, Generation: w.env.generation, Sockets: w.meta}
}

// answer receives hello and sends m. What is heard afterwards comes in the
// channel, until the end.
func (w *testator) answer(m wire.Message) <-chan wire.Message {
	heard := make(chan wire.Message, 10)
	go func() {
		defer close(heard)
		for {
			said, _, err := w.conn.Receive()
			if err != nil {
				return
			}
			if hello, ok := said.(wire.Hello); ok {
				if hello.Version != wire.Version || hello.PID != os.Getpid() || hello.Build == "" {
					w.t.Errorf("%+v", hello)
				}
				if err := w.conn.Send(m); err != nil {
					w.t.Error(err)
				}
				continue
			}
			heard <- said
		}
	}()
	return heard
}

func wantNoVariables(t *testing.T) {
	t.Helper()
	for _, name := range envNames {
		if value, ok := os.LookupEnv(name); ok {
			t.Errorf("%s=%s is left", name, value)
		}
	}
}

// TestSuccessorFindsWhatItWasLeft, from New to confirm, in one process.
func TestSuccessorFindsWhatItWasLeft(t *testing.T) {
	old := newAlone(t, Options{})
	l := listenAs(t, old, "main", "tcp", "127.0.0.1:0")
	p := listenPacketAs(t, old, "größe = 1", "udp", "127.0.0.1:0")
	must(t, old.AddFile("file", os.Stdin))
	old.generation.Store(6)
	w := newTestator(t, old).bequeath()
	heard := w.answer(w.manifest())
	u := newAlone(t, Options{})
	wantNoVariables(t)
	if u.Generation() != 7 {
		t.Errorf("generation %d, want 7", u.Generation())
	}
	for _, m := range w.meta {
		if got := u.sockets.named[m.Name].Socket; got != m {
			t.Errorf("%q is known as %+v, want %+v", m.Name, got, m)
		}
	}
	next := listenAs(t, u, "main", "tcp", "127.0.0.1:0")
	nextPacket := listenPacketAs(t, u, "größe = 1", "udp", "127.0.0.1:0")
	f, err := u.File("file")
	must(t, err)
	defer f.Close()
	if inode(t, next) != inode(t, l) || inode(t, nextPacket) != inode(t, p) || inode(t, f) != inode(t, os.Stdin) {
		t.Error("other sockets and files than the predecessor's")
	}
	wantFlags(t, next)
	wantFlags(t, nextPacket)
	ready := make(chan error, 1)
	go func() { ready <- u.Ready() }()
	if m := within(t, "ready", heard); m != (wire.Ready{}) {
		t.Fatalf("%T", m)
	}
	must(t, w.conn.Send(wire.Commit{}))
	if m := within(t, "answer to commit", heard); m != (wire.Serving{}) {
		t.Fatalf("%T", m)
	}
	must(t, within(t, "return of Ready", ready))
	must(t, l.Close())
	wantEcho(t, next, next.Addr())
	must(t, w.conn.Send(wire.Confirm{}))
	must(t, w.conn.Close())
	u.Wait()
	u.Stop()
}

// TestInheritedDescriptorsAreOurs: close-on-exec, and O_NONBLOCK for sockets.
func TestInheritedDescriptorsAreOurs(t *testing.T) {
	old := newAlone(t, Options{})
	listenAs(t, old, "main", "tcp", "127.0.0.1:0")
	listenPacketAs(t, old, "dns", "udp", "127.0.0.1:0")
	w := newTestator(t, old)
	pidfile, err := os.Create(filepath.Join(t.TempDir(), "next"))
	must(t, err)
	defer pidfile.Close()
	w.env.pidfile = leave(t, pidfile)
	for _, f := range w.env.fds {
		must(t, syscall.SetNonblock(f.fd, false)) // somebody's doing
	}
	w.bequeath()
	heard := w.answer(w.manifest())
	u := newUpgrader(Options{Logger: slog.New(slog.DiscardHandler)})
	u.log = u.options.Logger
	l, err := u.inherit()
	must(t, err)
	for _, s := range u.sockets.named {
		defer s.parked.Close()
		wantFlags(t, s.parked)
		if !s.inherited {
			t.Errorf("%q is not known as inherited", s.Name)
		}
	}
	wantFlags(t, l.channel)
	if inode(t, l.pidfile) != inode(t, pidfile) || flags(t, l.pidfile)&syscall.O_CLOEXEC == 0 {
		t.Error("the pidfile is another one, or not close-on-exec")
	}
	if l.process == nil || l.process.Pid != w.env.predecessor {
		t.Errorf("the predecessor is %v, want %d", l.process, w.env.predecessor)
	}
	must(t, l.pidfile.Close())
	must(t, l.channel.Close())
	if m := within(t, "end of the channel", heard); m != nil { // no duplicate is left
		t.Errorf("%T", m)
	}
}

// TestLeakedEnvironmentIsIgnored, and nothing that it names is touched: the
// descriptors are somebody else's, perhaps the runtime's own.
func TestLeakedEnvironmentIsIgnored(t *testing.T) {
	tests := map[string]func(t *testing.T, w *testator){
		"no such descriptor": func(t *testing.T, w *testator) { closed(t, w.env.channel); w.env.channel = 1 << 20 },
		"a file": func(t *testing.T, w *testator) {
			closed(t, w.env.channel)
			w.env.channel = leave(t, os.Stdin)
		},
		"a tcp socket": func(t *testing.T, w *testator) {
			closed(t, w.env.channel)
			ln, err := net.ListenTCP("tcp", nil)
			must(t, err)
			defer ln.Close()
			w.env.channel = leave(t, ln)
		},
		"the channel of another process": func(_ *testing.T, w *testator) { w.env.predecessor++ },
	}
	for name, leak := range tests {
		t.Run(name, func(t *testing.T) {
			old := newAlone(t, Options{})
			listenAs(t, old, "main", "tcp", "127.0.0.1:0")
			w := newTestator(t, old)
			leak(t, w)
			w.bequeath()
			var log strings.Builder
			u := newAlone(t, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
			wantNoVariables(t)
			if u.Generation() != 1 || len(u.sockets.named) > 0 {
				t.Errorf("generation %d with %d sockets", u.Generation(), len(u.sockets.named))
			}
			must(t, u.Ready())
			if !strings.Contains(log.String(), "environment ignored") {
				t.Errorf("the log does not say it: %s", &log)
			}
			for _, n := range []int{w.env.channel, w.env.fds[0].fd} {
				if n == 1<<20 {
					continue
				}
				if info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(n)); err == nil && strings.Contains(string(info), "flags:\t02") {
					t.Errorf("descriptor %d was made close-on-exec", n)
				}
				closed(t, n)
			}
		})
	}
	t.Run("malformed", func(t *testing.T) {
		t.Setenv(envChannel, "three")
		u := newAlone(t, Options{})
		wantNoVariables(t)
		if u.Generation() != 1 {
			t.Errorf("generation %d", u.Generation())
		}
	})
}

// TestPredecessorThatIsGoneBeforeTheManifest makes no difference: what was
// inherited is there.
func TestPredecessorThatIsGoneBeforeTheManifest(t *testing.T) {
	for _, when := range []string{"before hello", "after hello"} {
		t.Run(when, func(t *testing.T) {
			old := newAlone(t, Options{})
			l := listenAs(t, old, "main", "tcp", "127.0.0.1:0")
			w := newTestator(t, old).bequeath()
			if when == "before hello" {
				must(t, w.conn.Close())
			} else {
				go func() {
					_, _, _ = w.conn.Receive()
					_ = w.conn.Close()
				}()
			}
			u := newAlone(t, Options{})
			if u.Generation() != 2 {
				t.Errorf("generation %d, want 2", u.Generation())
			}
			next := listenAs(t, u, "main", "tcp", "localhost:0")
			if inode(t, next) != inode(t, l) {
				t.Error("another socket than the predecessor's")
			}
			settle(t, u)
			u.Wait()
		})
	}
}

// TestNewGivesUp, and says why.
func TestNewGivesUp(t *testing.T) {
	tests := map[string]struct {
		answer func(*testator) wire.Message
		cause  error
		text   string
	}{
		"told to":            {func(*testator) wire.Message { return wire.Abort{Reason: "called off"} }, ErrAborted, "called off"},
		"no manifest":        {func(*testator) wire.Message { return wire.Ready{} }, nil, "want a manifest"},
		"another version":    {func(w *testator) wire.Message { m := w.manifest(); m.Version = 9; return m }, nil, "speaks version 9 of the handover protocol, this build version 1"},
		"another generation": {func(w *testator) wire.Message { m := w.manifest(); m.Generation = 9; return m }, nil, "the manifest is for generation 9, UPGRADER_GENERATION says 2"},
		"a socket more": {func(w *testator) wire.Message {
			m := w.manifest()
			m.Sockets = append(m.Sockets, wire.Socket{Name: "more"})
			return m
		}, nil, "names 2 sockets and files, 1 were inherited"},
		"a socket less":        {func(w *testator) wire.Message { m := w.manifest(); m.Sockets = nil; return m }, nil, "names 0 sockets and files, 1 were inherited"},
		"another name":         {func(w *testator) wire.Message { w.meta[0].Name = "other"; return w.manifest() }, nil, `names "other", which was not inherited`},
		"another kind":         {func(w *testator) wire.Message { w.meta[0].Kind = kindPacket; return w.manifest() }, nil, `says that "main" is a packet, it is a listener`},
		"what is no message":   {nil, nil, "message"},
		"a missing descriptor": {func(w *testator) wire.Message { return w.manifest() }, syscall.EBADF, `inherit "main"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			old := newAlone(t, Options{})
			listenAs(t, old, "main", "tcp", "127.0.0.1:0")
			w := newTestator(t, old)
			var heard <-chan wire.Message
			switch name {
			case "what is no message":
				w = nonsense(t, w)
				heard = make(chan wire.Message)
			case "a missing descriptor":
				closed(t, w.env.fds[0].fd)
				heard = w.answer(tt.answer(w))
			default:
				heard = w.answer(tt.answer(w))
			}
			w.bequeath()
			u, err := New(Options{})
			if u != nil || tt.cause != nil && !errors.Is(err, tt.cause) {
				t.Errorf("%v, want %v", err, tt.cause)
			}
			wantText(t, err, tt.text)
			wantText(t, err, "upgrader: ")
			wantNoVariables(t)
			if name == "what is no message" {
				return
			}
			failed, ok := within(t, "reason", heard).(wire.Failed)
			if !ok || !strings.Contains(fmt.Sprint(err), failed.Text) || failed.Text == "" {
				t.Errorf("the predecessor is told %q, New returns %v", failed.Text, err)
			}
			if m, open := <-heard; open {
				t.Errorf("%T after that, want the end", m)
			}
		})
	}
}

// nonsense replaces the channel by one on which there is no message.
func nonsense(t *testing.T, w *testator) *testator {
	t.Helper()
	closed(t, w.env.channel)
	local, remote, err := fd.Pair()
	must(t, err)
	t.Cleanup(func() { local.Close() })
	w.env.channel = leave(t, remote)
	must(t, remote.Close())
	_, err = io.WriteString(local, "\x00\x00\x00\x05{}{}{")
	must(t, err)
	return w
}
