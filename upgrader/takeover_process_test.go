//go:build linux

package upgrader

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// TestTakeOversLoseNothing: one after the other, under load.
func TestTakeOversLoseNothing(t *testing.T) {
	t.Parallel()
	s := carriedBy(t, takesOver)
	s.config.Probation = -1
	s.start()
	p := s.probe()
	n := max(100, rounds(t))
	for generation := 2; generation <= n+1; generation++ {
		old := s.pidfile()
		if !s.upgrade() {
			t.Fatalf("take over %d failed", generation-1)
		}
		s.gone(old)
	}
	p.check(t, 0)
	s.serves(s.pidfile(), n+1)
}

// TestTakeOverOfManySockets: 1,000 listeners, and as many files, arrive in eight
// batches, and the third generation has them all.
func TestTakeOverOfManySockets(t *testing.T) {
	t.Parallel()
	s := carriedBy(t, takesOver)
	s.config.Many = 1000
	s.start()
	p := s.probe()
	for generation := 2; generation <= 3; generation++ {
		old := s.pidfile()
		if !s.upgrade() {
			t.Fatal("take over failed")
		}
		s.gone(old)
		s.serves(s.pidfile(), generation)
	}
	p.check(t, 0)
}

// TestTwoTakeOverAtOnce: one wins, and the other is told why not.
func TestTwoTakeOverAtOnce(t *testing.T) {
	t.Parallel()
	for range 5 {
		s := carriedBy(t, takesOver)
		s.config.Probation = longProbation
		s.start()
		p := s.probe()
		old, from := s.pidfile(), s.mark()
		both := map[int]bool{}
		for range 2 {
			both[s.comes(old).Process.Pid] = true
		}
		failed := s.waitAfter(from, "the loser's error", func(r record) bool { return r.str("msg") == "program failed" })
		if text := failed.str("err"); !strings.Contains(text, ErrBusy.Error()) && !strings.Contains(text, "is held by process") {
			t.Errorf("the loser says %q", text)
		}
		delete(both, failed.num("pid"))
		s.waitAfter(from, "the winner", func(r record) bool { return moved(0, "on probation")(r) && both[r.num("pid")] })
		s.signal(old, syscall.SIGKILL) // that is the end of probation
		for winner := range both {
			s.waitAfter(from, "the winner alone", moved(winner, "serving"))
			s.serves(winner, 2)
		}
		p.check(t, 1)
	}
}

// TestTakeOverAcrossNamespaces: the new process is in pid and mount namespaces
// of its own, where neither knows the other's pid, and sees the shared directory
// at another path.
func TestTakeOverAcrossNamespaces(t *testing.T) {
	t.Parallel()
	s := carriedBy(t, takesOver)
	s.config.PIDFile = "" // it would name a pid of either namespace
	s.start()
	p := s.probe()
	elsewhere := t.TempDir()
	there := s.config
	there.Control = filepath.Join(elsewhere, "control")
	s.config.Control, there.Control = there.Control, s.config.Control
	s.configure()
	from := s.mark()
	s.command = func() *exec.Cmd {
		return exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
			`mount --bind "$0" "$1" && exec "$2"`, s.dir, elsewhere, s.config.Exe)
	}
	if err := exec.Command("unshare", "--pid", "--fork", "--mount-proc", "true").Run(); err != nil {
		t.Skipf("unshare: %v: this test needs root", err)
	}
	s.comes(0)
	here := s.waitAfter(from, "take over", moved(s.first.Process.Pid, "probation")).num("successor")
	t.Cleanup(func() { _ = syscall.Kill(here, syscall.SIGTERM) })
	s.waitAfter(from, "take over", moved(1, "serving"))
	s.gone(s.first.Process.Pid)
	p.check(t, 0)
	if pid, generation := s.ask("who"); pid != 1 || generation != 2 {
		t.Errorf("process %d of generation %d answers, want 1 of 2", pid, generation)
	}
}

// TestTakeOverOptions: what the values of TakeOver do, with and without somebody
// who serves.
func TestTakeOverOptions(t *testing.T) {
	control := filepath.Join(privateDir(t), "control")
	nobody := func(o Options) error {
		t.Helper()
		u, err := New(o)
		if err == nil {
			err = u.Ready()
			u.Stop()
		}
		return err
	}
	if err := nobody(Options{ControlSocket: control, TakeOver: TakeOverRequire}); !errors.Is(err, ErrNoPredecessor) || !strings.Contains(err.Error(), control) {
		t.Errorf("required, nobody there: %v", err)
	}
	for _, o := range []Options{{ControlSocket: control}, {ControlSocket: control, TakeOver: TakeOverNever}} {
		if err := nobody(o); err != nil {
			t.Errorf("%v, nobody there: %v", o.TakeOver, err)
		}
	}
	for _, o := range []Options{{TakeOver: TakeOverRequire}, {Standby: true}, {Standby: true, ControlSocket: control, TakeOver: TakeOverNever}} {
		if err := nobody(o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
	u, err := New(Options{ControlSocket: control})
	must(t, err)
	defer u.Stop()
	must(t, u.Ready())
	if err := nobody(Options{ControlSocket: control, TakeOver: TakeOverNever}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("never, somebody there: %v", err)
	}
}

// privateDir is a directory that nobody else can write to.
func privateDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "private")
	must(t, os.Mkdir(dir, 0o700))
	return dir
}

// TestHungProcessIsNotTakenOver: what answers and says nothing decides by the
// limit.
func TestHungProcessIsNotTakenOver(t *testing.T) {
	t.Parallel()
	s := carriedBy(t, takesOver).start()
	old, from := s.pidfile(), s.mark()
	s.signal(old, syscall.SIGSTOP)
	begun := time.Now()
	cmd := s.run(envComes + "=2 0")
	s.others.Go(func() { _ = cmd.Wait() })
	r := s.waitAfter(from, "error", func(r record) bool { return r.str("msg") == "program failed" })
	if text := r.str("err"); !strings.Contains(text, ErrTimeout.Error()) || time.Since(begun) < helloTimeout {
		t.Errorf("after %v: %q", time.Since(begun), text)
	}
	s.signal(old, syscall.SIGCONT) // now it reads the hello of a process that is gone
	s.waitAfter(from, "verdict", func(r record) bool { return moved(old, "serving")(r) && strings.Contains(r.str("err"), "it ended") })
	s.serves(old, 1)
	if !s.upgrade() {
		t.Error("the next take over failed")
	}
}

// TestSwapGoesBackAsFast: the process that was replaced stands by for its
// successor, in its own build.
func TestSwapGoesBackAsFast(t *testing.T) {
	t.Parallel()
	s := withStandbys(t).start()
	p := s.probe()
	s.standBy()
	builds := map[int]bool{}
	for generation := 2; generation <= 5; generation++ {
		old, from := s.pidfile(), s.mark()
		if a := s.order(wire.VerbSwap); a.Result != wire.ResultDone {
			t.Fatalf("%+v", a)
		}
		s.gone(old)
		s.serves(s.pidfile(), generation)
		st := s.waitAfter(from, "standby", func(r record) bool {
			return r.str("msg") == "standby is ready" && r.num("pid") == s.pidfile()
		}).num("standby")
		builds[st] = true
	}
	if len(builds) != 4 {
		t.Errorf("%d standbys, want a new one each time", len(builds))
	}
	p.check(t, 0)
}

func TestPromoteWithoutStandby(t *testing.T) {
	t.Parallel()
	s := withStandbys(t).start()
	if a := s.order(wire.VerbPromote); a.Result != wire.ResultBusy || a.Text != ErrNoStandby.Error() {
		t.Errorf("%+v, want busy: %v", a, ErrNoStandby)
	}
	s.serves(s.pidfile(), 1)
}

// order asks the control socket for something and returns the answer.
func (s *service) order(verb string) wire.Answer {
	s.t.Helper()
	c, err := net.Dial("unix", s.config.Control)
	if err != nil {
		s.t.Fatal(err)
	}
	conn := wire.NewConn(c.(*net.UnixConn))
	defer conn.Close()
	must(s.t, conn.Send(wire.Request{Version: wire.Version, Verb: verb}))
	must(s.t, c.SetReadDeadline(time.Now().Add(deadline)))
	for {
		m, _, err := conn.Receive()
		if err != nil {
			s.t.Fatal(err)
		}
		if a, ok := m.(wire.Answer); ok {
			return a
		}
	}
}

// liar is a successor or predecessor of the test's own making.
type liar struct {
	t *testing.T
	*wire.Conn
	channel *net.UnixConn
}

func lieOver(t *testing.T, c net.Conn) *liar {
	t.Helper()
	uc := c.(*net.UnixConn)
	must(t, uc.SetDeadline(time.Now().Add(deadline)))
	return &liar{t, wire.NewConn(uc), uc}
}

func (l *liar) next() wire.Message {
	l.t.Helper()
	m, files, err := l.Receive()
	closeAll(files)
	if err != nil {
		return nil
	}
	return m
}

// hear reads until the other side is gone.
func (l *liar) hear() {
	for m := l.next(); m != nil; m = l.next() {
		l.t.Logf("heard %T", m)
	}
}

// TestHostileSuccessors: whatever comes to the control socket, the process that
// serves serves on, and the next upgrade works.
func TestHostileSuccessors(t *testing.T) {
	t.Parallel()
	hello := wire.Hello{Version: wire.Version, PID: 1, Build: "liar"}
	tests := map[string]struct {
		lie  func(l *liar)
		want string // in the log, or in the answer
	}{
		"another version": {func(l *liar) { must(l.t, l.Send(wire.Hello{Version: 99})); l.next() }, "version 99"},
		"no acknowledgement": {func(l *liar) {
			must(l.t, l.Send(hello))
			l.next()
			l.next()
			l.hear() // until it is given up
		}, "did not acknowledge"},
		"too few": {func(l *liar) {
			must(l.t, l.Send(hello))
			l.next()
			l.next()
			must(l.t, l.Send(wire.Received{Count: 1}))
			l.next()
		}, "it has received 1 of"},
		"something else": {func(l *liar) {
			must(l.t, l.Send(hello))
			l.next()
			l.next()
			must(l.t, l.Send(wire.Serving{}))
			l.next()
		}, "it sent a wire.Serving"},
		"gone at once": {func(l *liar) { must(l.t, l.Send(hello)) }, "it ended"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := carriedBy(t, takesOver).start()
			old, from := s.pidfile(), s.mark()
			c, err := net.Dial("unix", s.config.Control)
			must(t, err)
			tt.lie(lieOver(t, c))
			_ = c.Close()
			s.waitAfter(from, tt.want, func(r record) bool { return strings.Contains(r.str("err"), tt.want) })
			s.serves(old, 1)
			if !s.upgrade() {
				t.Error("the next take over failed")
			}
		})
	}
}

// TestLiarIsEnded: one that has everything and breaks the rules is killed, if it
// does not go: it holds what only the committed process may.
func TestLiarIsEnded(t *testing.T) {
	t.Parallel()
	s := carriedBy(t, takesOver).start()
	old, from := s.pidfile(), s.mark()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), envStranger+"="+s.config.Control, envSays+"=serving")
	if err := cmd.Run(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the liar has ended with %v, want that it was killed", err)
	}
	s.waitAfter(from, "verdict", func(r record) bool {
		return moved(old, "serving")(r) && strings.Contains(r.str("err"), "it sent a wire.Serving in the phase ready")
	})
	s.serves(old, 1)
	if !s.upgrade() {
		t.Error("the next take over failed")
	}
}

// TestHungLiarIsEnded: one that has descriptors and says nothing is killed once it
// was given up: it holds the lock for which the standbys wait, and if the process
// that serves dies then, one of them does.
func TestHungLiarIsEnded(t *testing.T) {
	t.Parallel()
	s := withStandbys(t).start()
	old, st, from := s.pidfile(), s.standBy(), s.mark()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), envStranger+"="+s.config.Control, envSays+"=nothing")
	must(t, cmd.Start())
	s.waitAfter(from, "given up", func(r record) bool { return strings.Contains(r.str("err"), "did not acknowledge") })
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the liar has ended with %v, want that it was killed", err)
	}
	s.serves(old, 1)
	s.signal(old, syscall.SIGKILL)
	s.waitAfter(from, "the standby", moved(st.Process.Pid, "serving"))
}

// acknowledgeNothing takes the first descriptors, and hangs.
func acknowledgeNothing(c *wire.Conn) {
	_ = c.Send(wire.Hello{Version: wire.Version, PID: os.Getpid()})
	for range 2 {
		if m, files, err := c.Receive(); err != nil {
			fmt.Println(m, len(files), err)
			return
		}
	}
	select {}
}

// TestStandbysThatComeAndGo cost nothing, although their process lives on.
func TestStandbysThatComeAndGo(t *testing.T) {
	control := filepath.Join(privateDir(t), "control")
	u, err := New(Options{ControlSocket: control})
	must(t, err)
	defer u.Stop()
	must(t, u.Ready())
	come := func() {
		t.Helper()
		c, err := net.Dial("unix", control)
		must(t, err)
		l := lieOver(t, c)
		must(t, l.Send(wire.Hello{Version: wire.Version, PID: os.Getpid(), Standby: true}))
		m := l.next().(wire.Manifest)
		l.next()
		must(t, l.Send(wire.Received{Count: len(m.Sockets)}))
		until(t, func() bool { return len(u.Status().Processes) == 2 })
		_ = c.Close()
		until(t, func() bool { return len(u.Status().Processes) == 1 })
	}
	come()
	before, threads := openFDs(t), taskCount(t)
	for range 50 {
		come()
	}
	wantNoMoreFDs(t, before)
	if got := taskCount(t); got > threads+25 {
		t.Errorf("%d threads more", got-threads)
	}
}

// until waits until is says so.
func until(t *testing.T, is func() bool) {
	t.Helper()
	for limit := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("it does not come")
		}
	}
}

func taskCount(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	must(t, err)
	return len(entries)
}

// TestStateThatTakesLong: who takes over waits as long as it is told that it is
// being written, and no longer.
func TestStateThatTakesLong(t *testing.T) {
	t.Parallel()
	control := filepath.Join(privateDir(t), "control")
	u, err := New(Options{ControlSocket: control, Probation: -1})
	must(t, err)
	must(t, u.SetState("s", writerFunc(func(w io.Writer) error {
		time.Sleep(helloTimeout + workingInterval)
		return text("late")(w)
	})))
	must(t, u.Ready())
	lines := make(chan string, 1000)
	heir, err := New(Options{ControlSocket: control, Logger: slog.New(slog.NewTextHandler(lineWriter(lines), nil))})
	must(t, err)
	wantState(t, heir, "s", "late")
	must(t, heir.Ready())
	<-u.Done() // else it would end the process of its successor, which is this one
	heir.Stop()
	if line := <-lines; !strings.Contains(line, "the states are being written") {
		t.Errorf("it does not say what it waits for, but %q", line)
	}
}

type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) { w <- string(p); return len(p), nil }

// answerAt lets a predecessor of the test's own making answer the first process
// that comes to a control socket.
func answerAt(t *testing.T, control string, answer func(ln net.Listener, l *liar)) {
	t.Helper()
	ln, err := net.Listen("unix", control)
	must(t, err)
	t.Cleanup(func() { ln.Close() })
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		answer(ln, lieOver(t, c))
	}()
}

// TestRefusalIsUnderstood: what the control socket answers to a hello that it does
// not take is what New says.
func TestRefusalIsUnderstood(t *testing.T) {
	control := filepath.Join(privateDir(t), "control")
	answerAt(t, control, func(_ net.Listener, l *liar) {
		l.next()
		_ = l.Send(wire.Answer{Result: wire.ResultRefused, Text: "it speaks version 2"})
	})
	_, err := New(Options{ControlSocket: control})
	if !errors.Is(err, ErrAborted) {
		t.Errorf("%v, want ErrAborted", err)
	}
	wantText(t, err, "it speaks version 2")
}

// serveTooEarly takes all that it gets, and says that it serves.
func serveTooEarly(c *wire.Conn) {
	_ = c.Send(wire.Hello{Version: wire.Version, PID: os.Getpid()})
	want, n := 1, 0
	for n < want {
		m, files, err := c.Receive()
		switch m := m.(type) {
		case wire.Manifest:
			want = len(m.Sockets)
		case wire.Descriptors:
			n += len(files)
			_ = c.Send(wire.Received{Count: n})
		default:
			fmt.Println(m, err)
			return
		}
	}
	_ = c.Send(wire.Serving{})
	select {}
}

// TestHostilePredecessors: New refuses what the manifest lies about.
func TestHostilePredecessors(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer tcp.Close()
	socket, err := tcp.(*net.TCPListener).File()
	must(t, err)
	defer socket.Close()
	file, err := os.Open(os.DevNull)
	must(t, err)
	defer file.Close()
	addr := tcp.Addr().String()
	listener := wire.Socket{Name: "main", Kind: kindListener, Network: "tcp", Requested: addr, Address: addr}
	lied := func(change func(*wire.Socket)) []wire.Socket {
		l := listener
		change(&l)
		return []wire.Socket{l}
	}
	tests := map[string]struct {
		sockets []wire.Socket
		files   []*os.File
		want    string
	}{
		"a file for a listener":  {[]wire.Socket{listener}, []*os.File{file}, `says that "main" is a listener, it is a file`},
		"a listener for packets": {lied(func(s *wire.Socket) { s.Kind = kindPacket }), []*os.File{socket}, "is a packet, it is a listener"},
		"another address":        {lied(func(s *wire.Socket) { s.Address = "127.0.0.1:1" }), []*os.File{socket}, "it is bound to " + addr},
		"another network":        {lied(func(s *wire.Socket) { s.Network = "unix" }), []*os.File{socket}, "bound to"},
		"no name":                {lied(func(s *wire.Socket) { s.Name = "" }), []*os.File{socket}, ErrName.Error()},
		"a name twice":           {[]wire.Socket{listener, listener}, []*os.File{socket, socket}, "twice"},
		"an unknown kind":        {lied(func(s *wire.Socket) { s.Kind = "door" }), []*os.File{socket}, "is a door"},
		"too many":               {[]wire.Socket{listener}, []*os.File{socket, socket}, "and then 2: the manifest has 1"},
		"two pidfds":             {[]wire.Socket{{Kind: kindProcess}, {Kind: kindProcess}}, []*os.File{file, file}, "two of the kind process"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			control := filepath.Join(privateDir(t), "control")
			ln, err := net.Listen("unix", control)
			must(t, err)
			defer ln.Close()
			said := make(chan string, 1)
			go func() {
				c, err := ln.Accept()
				if err != nil {
					said <- err.Error()
					return
				}
				l := lieOver(t, c)
				defer l.Close()
				l.next()
				numbers, err := numbersOf(tt.files)
				err = errors.Join(err, l.Send(wire.Manifest{Version: wire.Version, Generation: 2, PID: 1, Sockets: tt.sockets}),
					l.Send(wire.Descriptors{Count: len(numbers)}, numbers...))
				for {
					switch m := l.next().(type) {
					case wire.Failed:
						said <- m.Text
						return
					case nil:
						said <- fmt.Sprint("nothing, ", err)
						return
					}
				}
			}()
			before := openFDs(t)
			_, err = New(Options{ControlSocket: control})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New: %v, want %q", err, tt.want)
			}
			if text := <-said; !strings.Contains(text, tt.want) {
				t.Errorf("the predecessor heard %q, want %q", text, tt.want)
			}
			wantNoMoreFDs(t, before)
		})
	}
}

// TestReplacedControlSocketIsRefused: who answers there did not bind what lies
// there now.
func TestReplacedControlSocketIsRefused(t *testing.T) {
	dir := privateDir(t)
	control := filepath.Join(dir, "control")
	var log bytes.Buffer
	u, err := New(Options{ControlSocket: control, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	must(t, err)
	defer u.Stop()
	must(t, u.Ready())
	must(t, os.Rename(control, control+".old"))
	// A relay that somebody else has put there: what it passes on is not its own.
	answerAt(t, control, func(ln net.Listener, l *liar) {
		m := wire.Manifest{Version: wire.Version, Generation: 2}
		l.next()
		fi, err := os.Lstat(control + ".old")
		if err != nil {
			return
		}
		s := wire.Socket{Name: controlName, Kind: kindListener, Network: "unix", Address: control}
		s.Dev, s.Ino = fd.Identity(fi)
		m.Sockets = []wire.Socket{s}
		f, err := ln.(*net.UnixListener).File()
		if err != nil {
			return
		}
		defer f.Close()
		numbers, _ := numbersOf([]*os.File{f})
		_ = errors.Join(l.Send(m), l.Send(wire.Descriptors{Count: 1}, numbers...))
		l.hear()
	})
	_, err = New(Options{ControlSocket: control})
	if err == nil || !strings.Contains(err.Error(), "was replaced") {
		t.Errorf("New: %v, want that %s was replaced", err, control)
	}
	must(t, os.Rename(control+".old", control))
}

// TestControlSocketOfAnotherUser: neither side deals with another uid.
func TestControlSocketOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("this test needs root")
	}
	dir := privateDir(t)
	must(t, os.Chown(dir, 65534, 65534))
	_, err := New(Options{ControlSocket: filepath.Join(dir, "control"), TakeOver: TakeOverRequire})
	if err == nil || errors.Is(err, ErrNoPredecessor) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory of another user: %v", err)
	}
}
