//go:build linux

package upgrader

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
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

// controlled is a service with a control socket.
func controlled(t *testing.T) *service {
	t.Helper()
	s := newService(t)
	s.config.Control = filepath.Join(s.dir, "control.sock")
	return s
}

// reply is what came until the end of a request.
type reply struct {
	notices []wire.Notice
	answer  wire.Answer
	err     error // the channel ended without an answer
}

func (r reply) status(t *testing.T) (st Status) {
	t.Helper()
	must(t, r.err)
	must(t, json.Unmarshal(r.answer.Status, &st))
	return st
}

// call makes a request of the process that answers now.
func call(t *testing.T, path, verb string) reply {
	t.Helper()
	return <-calling(t, path, verb)
}

func calling(t *testing.T, path, verb string) <-chan reply {
	t.Helper()
	c, err := net.Dial("unix", path)
	must(t, err)
	_ = c.SetDeadline(time.Now().Add(deadline))
	conn := wire.NewConn(c.(*net.UnixConn))
	must(t, conn.Send(wire.Request{Version: wire.Version, Verb: verb}))
	result := make(chan reply, 1)
	go func() {
		defer c.Close()
		result <- readReply(conn)
	}()
	return result
}

func readReply(conn *wire.Conn) (r reply) {
	for {
		m, _, err := conn.Receive()
		switch m := m.(type) {
		case wire.Notice:
			r.notices = append(r.notices, m)
		case wire.Answer:
			r.answer = m
			return r
		default:
			r.err = errors.Join(err, fmt.Errorf("got %T", m))
			return r
		}
	}
}

func wantResult(t *testing.T, r reply, result, text string) {
	t.Helper()
	if r.err != nil || r.answer.Result != result || !strings.Contains(r.answer.Text, text) {
		t.Errorf("%+v, want %s: %q", r, result, text)
	}
}

func TestControlledUpgradeAnswersWithTheVerdict(t *testing.T) {
	t.Parallel()
	s := controlled(t).start()
	old := s.pidfile()
	if fi, err := os.Stat(s.config.Control); err != nil || fi.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket: %v %v", fi.Mode(), err)
	}
	st := call(t, s.config.Control, wire.VerbStatus).status(t)
	if st.states() != "serving (self)" || len(st.Sockets) != 2 {
		t.Errorf("%+v", st)
	}

	r := call(t, s.config.Control, wire.VerbUpgrade)
	wantResult(t, r, wire.ResultDone, "")
	if st := r.status(t); st.Counters.Upgrades != 1 || st.states() != "serving, draining (self)" {
		t.Errorf("%+v", st)
	}
	var phases []string
	for _, n := range r.notices {
		var e Event
		must(t, json.Unmarshal(n.Event, &e))
		if e.Kind == EventPhase {
			phases = append(phases, string(e.Phase))
		}
	}
	if got := strings.Join(phases, " "); got != "prepare hello ready commit probation" {
		t.Errorf("phases %q", got)
	}

	// Who serves answers, on the socket that was handed over.
	if st := call(t, s.config.Control, wire.VerbStatus).status(t); st.Counters.Upgrades != 1 || st.Last.Result != Upgraded ||
		st.Processes[0].PID == old || !st.Processes[0].Self {
		t.Errorf("%+v", st)
	}
	wantResult(t, call(t, s.config.Control, wire.VerbStop), wire.ResultDone, "")
	s.allGone()
	if _, err := os.Lstat(s.config.Control); !os.IsNotExist(err) {
		t.Errorf("the path is left behind: %v", err)
	}
}

func TestControlledUpgradeThatFails(t *testing.T) {
	t.Parallel()
	s := controlled(t)
	s.config.Probation = 20_000
	s.start()
	old := s.pidfile()
	for point, want := range map[string]struct{ result, text string }{
		"start":      {wire.ResultFailed, "hello"},
		"new":        {wire.ResultFailed, "ready"},
		"open":       {wire.ResultFailed, "commit"},
		"ran 1000ms": {wire.ResultRolledBack, "probation"},
		"serving":    {wire.ResultRolledBack, "probation"},
	} {
		s.config.Faults = []fault{{2, point, "exit1"}}
		s.configure()
		r := call(t, s.config.Control, wire.VerbUpgrade)
		wantResult(t, r, want.result, want.text)
	}
	st := call(t, s.config.Control, wire.VerbStatus).status(t)
	if st.Counters.Failures != 3 || st.Counters.Rollbacks != 2 || st.Processes[0].PID != old {
		t.Errorf("%+v", st)
	}
}

func TestControlledProbationEnds(t *testing.T) {
	t.Parallel()
	s := controlled(t)
	s.config.Probation = 20_000
	s.start()
	old := s.pidfile()
	path := s.config.Control
	wantResult(t, call(t, path, wire.VerbRollback), wire.ResultBusy, "no upgrade is on probation")
	wantResult(t, call(t, path, wire.VerbConfirm), wire.ResultBusy, "no upgrade is on probation")

	from := s.mark()
	upgrade := calling(t, path, wire.VerbUpgrade)
	s.waitState(from, 2, "on probation")
	wantResult(t, call(t, path, wire.VerbUpgrade), wire.ResultBusy, "under way")
	wantResult(t, call(t, path, wire.VerbRollback), wire.ResultDone, "") // by the new process
	wantResult(t, <-upgrade, wire.ResultRolledBack, errOperator.Error())
	if st := call(t, path, wire.VerbStatus).status(t); st.Processes[len(st.Processes)-1].PID != old || st.Counters.Rollbacks != 1 {
		t.Errorf("%+v", st)
	}

	from = s.mark()
	upgrade = calling(t, path, wire.VerbUpgrade)
	s.waitState(from, 2, "on probation")
	wantResult(t, call(t, path, wire.VerbConfirm), wire.ResultDone, "")
	wantResult(t, <-upgrade, wire.ResultDone, "")
}

// waitState waits until a process of this generation gets into a state.
func (s *service) waitState(from, generation int, state string) {
	s.t.Helper()
	s.waitAfter(from, state, func(r record) bool { return r.num("generation") == generation && r.str("to") == state })
}

// A request that is none gets an answer that says what one is.
func TestRequestsThatAreNone(t *testing.T) {
	t.Parallel()
	s := controlled(t).start()
	for name, test := range map[string]struct {
		m    wire.Message
		text string
	}{
		"verb":    {wire.Request{Version: wire.Version, Verb: "restart"}, "want status, watch, upgrade, promote, swap, rollback, confirm or stop"},
		"version": {wire.Request{Version: 99, Verb: "status"}, "speaks version 99"},
		"message": {wire.Ready{}, "want a request"},
		"long":    {wire.Request{Version: wire.Version, Verb: strings.Repeat("x", controlFrame)}, "expected 1 to"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := net.Dial("unix", s.config.Control)
			must(t, err)
			defer c.Close()
			conn := wire.NewConn(c.(*net.UnixConn))
			must(t, conn.Send(test.m))
			wantResult(t, readReply(conn), wire.ResultRefused, test.text)
		})
	}
}

// Whatever clients do, an upgrade is not delayed, and memory does not grow.
func TestHostileClientsHoldNobodyUp(t *testing.T) {
	t.Parallel()
	s := controlled(t)
	s.start()
	before := memoryOf(t, s.pidfile())
	var conns []net.Conn
	for i := range 1000 {
		c, err := net.DialTimeout("unix", s.config.Control, time.Second)
		if err != nil {
			break // the kernel's queue is full: so be it
		}
		conns = append(conns, c)
		switch i % 4 {
		case 0: // silent
		case 1: // part of a frame
			_, _ = c.Write([]byte{0, 0})
		case 2: // a length of 1 GiB, and some of it
			_, _ = c.Write(binary.BigEndian.AppendUint32(nil, 1<<30))
			_, _ = c.Write(make([]byte, 1000))
		case 3:
			b := make([]byte, 1000)
			for j := range b {
				b[j] = byte(rand.Int())
			}
			_, _ = c.Write(b)
		}
	}
	if len(conns) < 50 {
		t.Fatalf("only %d connections", len(conns))
	}
	if !s.upgrade() {
		t.Error("the upgrade failed")
	}
	if after := memoryOf(t, s.pidfile()); after > before+8<<20 {
		t.Errorf("%d KiB, %d before", after>>10, before>>10)
	}
	for _, c := range conns {
		c.Close()
	}
	// Those that wait in the queue are answered in their turn.
	wantResult(t, call(t, s.config.Control, wire.VerbStatus), wire.ResultDone, "")
}

func memoryOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	must(t, err)
	var size, resident int
	_, err = fmt.Sscan(string(b), &size, &resident)
	must(t, err)
	return resident * os.Getpagesize()
}

// A client that goes away has asked all the same.
func TestUpgradeGoesOnWithoutItsClient(t *testing.T) {
	t.Parallel()
	s := controlled(t).start()
	c, err := net.Dial("unix", s.config.Control)
	must(t, err)
	must(t, wire.NewConn(c.(*net.UnixConn)).Send(wire.Request{Version: wire.Version, Verb: wire.VerbUpgrade}))
	s.waitState(0, 1, "upgrading")
	must(t, c.Close())
	s.waitState(0, 2, "serving")
}

// A stranger has the socket's mode against him, and then his uid.
func TestAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	t.Parallel()
	s := controlled(t).start()
	for dir := s.dir; dir != "/"; dir = filepath.Dir(dir) {
		if fi, err := os.Stat(dir); err == nil && fi.Mode().Perm()&0o005 != 0o005 {
			must(t, os.Chmod(dir, fi.Mode().Perm()|0o055))
		}
	}
	self, err := os.ReadFile(s.config.Exe)
	must(t, err)
	program := filepath.Join(s.dir, "stranger")
	must(t, os.WriteFile(program, self, 0o755))
	as := func(says string) string {
		t.Helper()
		cmd := exec.Command(program)
		cmd.Env = append(os.Environ(), envStranger+"="+s.config.Control, envSays+"="+says)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	for _, says := range []string{"status", "hello"} {
		must(t, os.Chmod(s.config.Control, 0o600))
		if got := as(says); !strings.Contains(got, "permission denied") {
			t.Errorf("%s by the mode: %s", says, got)
		}
		must(t, os.Chmod(s.config.Control, 0o666))
		if got := as(says); !strings.Contains(got, "uid 65534 may not control this process") {
			t.Errorf("%s by the uid: %s", says, got)
		}
	}
}

const (
	envStranger = "UPGRADER_TEST_STRANGER"
	envSays     = "UPGRADER_TEST_SAYS"
)

// askAsStranger asks for the status, or the sockets, and prints what comes of it.
func askAsStranger(path string) {
	c, err := net.Dial("unix", path)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	conn := wire.NewConn(c.(*net.UnixConn))
	switch os.Getenv(envSays) {
	case "serving":
		serveTooEarly(conn)
	case "nothing":
		acknowledgeNothing(conn)
	case "hello":
		_ = conn.Send(wire.Hello{Version: wire.Version, PID: os.Getpid()})
	default:
		_ = conn.Send(wire.Request{Version: wire.Version, Verb: wire.VerbStatus})
	}
	fmt.Printf("%+v\n", readReply(conn))
}

func TestDirectoryOfTheControlSocket(t *testing.T) {
	dir := t.TempDir()
	try := func() error {
		u, err := New(Options{ControlSocket: filepath.Join(dir, "s")})
		if err == nil {
			must(t, u.Ready())
			u.Stop()
		}
		return err
	}
	for mode, want := range map[os.FileMode]string{0o777: "writable by others (mode 0777)", 0o770: "writable by others (mode 0770)"} {
		must(t, os.Chmod(dir, mode))
		wantText(t, try(), want)
	}
	must(t, os.Chmod(dir, 0o777|os.ModeSticky))
	must(t, try())
	must(t, os.Chmod(dir, 0o755))
	must(t, try())
	if os.Geteuid() == 0 {
		must(t, os.Chown(dir, 65534, -1))
		wantText(t, try(), "belongs to uid 65534")
	}
	dir = filepath.Join(dir, "none")
	wantText(t, try(), "no such file or directory")
}

// Watching ends when the client closes, and says when something happens.
func TestWatchShowsWhatHappens(t *testing.T) {
	t.Parallel()
	s := controlled(t).start()
	c, err := net.Dial("unix", s.config.Control)
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(deadline)))
	conn := wire.NewConn(c.(*net.UnixConn))
	must(t, conn.Send(wire.Request{Version: wire.Version, Verb: wire.VerbWatch}))
	next := func() (st Status, more bool) {
		m, _, err := conn.Receive()
		must(t, err)
		n, more := m.(wire.Notice)
		if more {
			must(t, json.Unmarshal(n.Status, &st))
		}
		return st, more
	}
	if st, _ := next(); st.states() != "serving (self)" {
		t.Errorf("%+v", st)
	}
	if !s.upgrade() {
		t.Fatal("upgrade failed")
	}
	seen := ""
	for {
		st, more := next()
		if !more {
			break // this process was replaced: the client asks the next one
		}
		seen = st.states()
	}
	if !strings.Contains(seen, "probation") && !strings.Contains(seen, "draining") {
		t.Errorf("the last status: %s", seen)
	}
}

// FuzzRequest: no bytes from a client end the process or hang.
func FuzzRequest(f *testing.F) {
	frame := func(text string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
	}
	f.Add(frame(`{"type":"request","body":{"version":1,"verb":"status"}}`))
	f.Add(frame(`{"type":"request","body":{"version":1,"verb":"rollback"}}`))
	f.Add(frame(`{"type":"confirm"}`))
	f.Add([]byte{0x40, 0, 0, 0, '{'})
	f.Add([]byte{})
	u, err := New(Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(u.Stop)
	f.Fuzz(func(t *testing.T, b []byte) {
		if strings.Contains(string(b), "stop") || strings.Contains(string(b), "upgrade") || strings.Contains(string(b), "watch") {
			return // what they do is tested elsewhere
		}
		local, remote, err := fd.Pair()
		must(t, err)
		far, err := fd.Channel(remote)
		must(t, err)
		attended := make(chan struct{})
		go func() {
			defer close(attended)
			u.attend(local)
		}()
		_, _ = far.Write(b)
		must(t, far.CloseWrite())
		_, _ = io.Copy(io.Discard, far)
		must(t, far.Close())
		<-attended
	})
}
