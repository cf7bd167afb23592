package supervise

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is the limit of everything that is waited for.
const patience = 30 * time.Second

// running is a supervisor as a process.
type running struct {
	*exec.Cmd
	lines  *bufio.Reader // of all below it, too
	errors bytes.Buffer
}

// begin runs a role under a supervisor. prepare may be nil.
func begin(t *testing.T, c Config, prepare func(*exec.Cmd), role string, args ...string) *running {
	t.Helper()
	if c.Command == nil {
		c.Command = as(role, args...)
	}
	config, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	line := as("supervise", string(config))
	r := &running{Cmd: exec.Command(line[0], line[1:]...)}
	r.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // all below it are killed with it
	r.Stderr = &r.errors
	// The race detector makes a process that ends wait for a second.
	r.Env = append(r.Environ(), "NOTIFY_SOCKET=", "GORACE=atexit_sleep_ms=0")
	if prepare != nil {
		prepare(r.Cmd)
	}
	// Not StdoutPipe, which Wait closes: what is printed is read after that.
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Stdout = in
	r.lines = bufio.NewReader(out)
	if err := out.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	kill := func() { _ = syscall.Kill(-r.Process.Pid, syscall.SIGKILL) }
	hung := time.AfterFunc(patience, kill)
	t.Cleanup(func() {
		hung.Stop()
		if r.ProcessState == nil {
			kill()
			_ = r.Wait()
		}
		out.Close()
		if t.Failed() {
			t.Logf("the supervisor has said\n%s", &r.errors)
		}
	})
	return r
}

// line returns the next one without its prefix.
func (r *running) line(t *testing.T, prefix string) string {
	t.Helper()
	s, err := r.lines.ReadString('\n')
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), prefix)
	if err != nil || !ok {
		t.Fatalf("line %q, %v; want %q", s, err, prefix)
	}
	return rest
}

func (r *running) wantCode(t *testing.T, code int) {
	t.Helper()
	_ = r.Wait()
	if got := r.ProcessState.ExitCode(); got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
}

func (r *running) wantLog(t *testing.T, text string) {
	t.Helper()
	if !strings.Contains(r.errors.String(), text) {
		t.Errorf("nothing said of %q", text)
	}
}

func (r *running) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := r.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func TestExitCodeIsTheMainProcesss(t *testing.T) {
	for arg, want := range map[string]int{"0": 0, "7": 7, "-9": 137, "-15": 143} {
		begin(t, Config{}, nil, "exit", arg).wantCode(t, want)
	}
}

func TestCommandThatCannotBeRun(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/no/such/interpreter\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]int{"no-such-command": 127, "/no/such/command": 127, plain: 126, script: 127} {
		r := begin(t, Config{Command: []string{command}}, nil, "")
		r.wantCode(t, want)
		r.wantLog(t, command)
	}
}

// TestSuccessorIsKnownBeforeItsPredecessorIsReaped: each of these names its
// successor and ends at once. If its end were seen before its word were heard,
// the supervisor would take the service for ended, with code 0.
func TestSuccessorIsKnownBeforeItsPredecessorIsReaped(t *testing.T) {
	const times = 200
	r := begin(t, Config{}, nil, "chain", strconv.Itoa(times))
	r.wantCode(t, 42)
	if n := strings.Count(r.errors.String(), ", was "); n != times {
		t.Errorf("%d successors followed, want %d", n, times)
	}
}

func TestOnlyTheMainProcessNamesItsSuccessor(t *testing.T) {
	r := begin(t, Config{}, nil, "stranger")
	r.wantCode(t, 5)
	if n := strings.Count(r.errors.String(), "not a process of this service"); n != 5 {
		t.Errorf("%d were refused, want 5", n)
	}
	if strings.Contains(r.errors.String(), ", was ") {
		t.Error("one was followed")
	}
}

// TestDesertedServiceHasFailed: its successor ended before it was named.
func TestDesertedServiceHasFailed(t *testing.T) {
	begin(t, Config{}, nil, "deserts").wantCode(t, codeLost)
}

// TestServiceThatGoesOnElsewhere is not restarted here.
func TestServiceThatGoesOnElsewhere(t *testing.T) {
	r := begin(t, Config{Restart: OnFailure}, nil, "moves", strconv.Itoa(os.Getpid()))
	r.wantCode(t, 0)
	r.wantLog(t, "not a process of this service")
}

func TestSuccessorThatWasGoneWhenItWasNamed(t *testing.T) {
	begin(t, Config{}, nil, "stays").wantCode(t, 0)
}

// TestSuccessorOfADeadProcessIsFollowed, and nothing is started beside it.
func TestSuccessorOfADeadProcessIsFollowed(t *testing.T) {
	for _, when := range []string{"early", "late"} {
		for _, restart := range []Restart{Never, OnFailure} {
			r := begin(t, Config{Restart: restart}, nil, "claims", when)
			r.line(t, "ready")
			r.signal(t, syscall.SIGTERM)
			r.wantCode(t, 3)
			r.wantLog(t, "which says so")
			if strings.Contains(r.errors.String(), "restarted") {
				t.Errorf("%s, restart %v: another one was started", when, &restart)
			}
		}
	}
}

func TestSignalsGoToTheMainProcessOfNow(t *testing.T) {
	r := begin(t, Config{KillAfter: time.Millisecond}, nil, "signals")
	r.line(t, "ready")
	r.line(t, "ready")
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGALRM, syscall.SIGCONT, 40, syscall.SIGTERM} {
		r.signal(t, s)
		r.line(t, "got "+s.String())
	}
	r.wantCode(t, 3)
	r.wantLog(t, "killed what was left") // the old one ignores SIGTERM
}

func TestStopEndsWhatIsLeft(t *testing.T) {
	r := begin(t, Config{Restart: Always, KillAfter: 50 * time.Millisecond}, nil, "leaves")
	pid, err := strconv.Atoi(r.line(t, "ready "))
	if err != nil {
		t.Fatal(err)
	}
	r.signal(t, syscall.SIGTERM)
	r.line(t, "told to end")
	r.wantCode(t, 3)
	r.wantLog(t, "killed what was left")
	if err := syscall.Kill(pid, 0); err == nil {
		t.Errorf("process %d is there", pid)
	}
	if strings.Contains(r.errors.String(), "restart") {
		t.Error("it was restarted")
	}
}

// TestPolicy stops, between two main processes, what would go on for ever.
func TestPolicy(t *testing.T) {
	for _, c := range []struct {
		restart   Restart
		role, arg string
		code      int
		again     bool
	}{
		{Never, "exit", "1", 1, false},
		{OnFailure, "exit", "0", 0, false},
		{OnFailure, "exit", "1", 1, true},
		{OnFailure, "exit", "-9", 137, true},
		{OnFailure, "stop", "1", 1, true},
		{UnlessStopped, "exit", "0", 0, true},
		{UnlessStopped, "exit", "1", 1, true},
		{UnlessStopped, "stop", "0", 0, false},
		{UnlessStopped, "stop", "1", 1, true},
		{UnlessStopped, "stop", "-9", 137, true},
		{Always, "exit", "0", 0, true},
		{Always, "stop", "0", 0, true},
	} {
		log, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r := begin(t, Config{Restart: c.restart}, func(cmd *exec.Cmd) { cmd.Stderr = w }, c.role, c.arg)
		w.Close()
		restarts := 0
		for lines := bufio.NewScanner(log); lines.Scan(); {
			if strings.Contains(lines.Text(), "restart in") {
				restarts++
			}
			if restarts == 2 {
				r.signal(t, syscall.SIGTERM)
			}
		}
		log.Close()
		r.wantCode(t, c.code)
		if (restarts >= 2) != c.again || (restarts == 0) == c.again {
			t.Errorf("%v after %s %s: %d restarts", &c.restart, c.role, c.arg, restarts)
		}
	}
}

// TestRestartsBackOff: a command that always fails is started again and again, after
// longer and longer waits.
func TestRestartsBackOff(t *testing.T) {
	log, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	r := begin(t, Config{Restart: OnFailure}, func(cmd *exec.Cmd) { cmd.Stderr = w }, "exit", "7")
	w.Close()
	var said []string
	begun := time.Now()
	for lines := bufio.NewScanner(log); lines.Scan(); {
		if _, after, found := strings.Cut(lines.Text(), "restart in "); found {
			delay, _, _ := strings.Cut(after, " ")
			said = append(said, delay)
		}
		if len(said) == 4 {
			r.signal(t, syscall.SIGTERM) // it waits for the next start
		}
	}
	r.wantCode(t, 7)
	if want := []string{"100ms", "200ms", "400ms", "800ms"}; !slices.Equal(said, want) {
		t.Errorf("waits %v, want %v", said, want)
	}
	if waited := time.Since(begun); waited < 700*time.Millisecond {
		t.Errorf("all that took only %v", waited)
	}
}

func TestStoredSocketsComeBackAfterACrash(t *testing.T) {
	r := begin(t, Config{Restart: OnFailure}, nil, "stores")
	address := r.line(t, "address ")
	for _, want := range []string{"", "1 http true"} {
		c, err := net.Dial("tcp", address) // never refused
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		c.Close()
		if err != nil || string(got) != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	r.wantCode(t, 0)
	r.wantLog(t, `a descriptor named "a:b" is not stored`)
	r.wantLog(t, "with 1 stored descriptors")
}

// TestNothingIsStored where another process has the sockets.
func TestNothingIsStored(t *testing.T) {
	r := begin(t, Config{Restart: OnFailure, NoStore: true}, nil, "stores")
	first := r.line(t, "address ")
	c, err := net.Dial("tcp", first)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	r.line(t, "address ") // it has opened another one
	if c, err := net.Dial("tcp", first); err == nil {
		c.Close()
		t.Error("the socket is still open")
	}
	r.signal(t, syscall.SIGTERM)
	r.wantCode(t, 143)
	r.wantLog(t, "with 0 stored descriptors")
}

func TestGivenSocketsAreStored(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		t.Fatalf("%T", ln)
	}
	f, err := tcp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The shell knows its pid, which becomes the supervisor's.
	r := begin(t, Config{}, func(c *exec.Cmd) {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		c.Path = "/bin/sh"
		c.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", self}, c.Args[1:]...)
		c.Env = append(c.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES=web")
		c.ExtraFiles = []*os.File{f}
	}, "stores")
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "1 web true" {
		t.Errorf("%q, %v", got, err)
	}
	c.Close()
	r.wantCode(t, 0)
}

// TestStateIsPassedOn, in order, and nothing that is between the service and
// its supervisor.
func TestStateIsPassedOn(t *testing.T) {
	address := filepath.Join(t.TempDir(), "notify")
	above, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer above.Close()
	ready, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	r := begin(t, Config{ReadyFD: 3}, func(c *exec.Cmd) {
		c.Env = append(c.Env, "NOTIFY_SOCKET="+address)
		c.ExtraFiles = []*os.File{w}
	}, "tells")
	w.Close()
	if err := above.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1024)
	for _, want := range []string{
		"STATUS=one", "READY=1\nSTATUS=two", "RELOADING=1\nMONOTONIC_USEC=5", "READY=1\nERRNO=2", "EXTEND_TIMEOUT_USEC=7", "WATCHDOG=1", "STOPPING=1",
	} {
		n, err := above.Read(b)
		if err != nil || string(b[:n]) != want {
			t.Fatalf("%q, %v; want %q", b[:n], err, want)
		}
	}
	if line, err := io.ReadAll(ready); err != nil || string(line) != "\n" {
		t.Errorf("-ready-fd: %q, %v", line, err)
	}
	r.wantCode(t, 0)
}

// TestManagerThatDoesNotRead holds up nothing for long.
func TestManagerThatDoesNotRead(t *testing.T) {
	address := filepath.Join(t.TempDir(), "notify")
	above, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer above.Close()
	for n := 1; n > 0; { // until its queue is full: one sender has no room for so many
		c, err := net.Dial("unixgram", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetWriteDeadline(time.Now().Add(tellTimeout / 4)); err != nil {
			t.Fatal(err)
		}
		for n = 0; err == nil; n++ {
			_, err = c.Write([]byte("STATUS=full"))
		}
		n--
	}
	r := begin(t, Config{}, func(c *exec.Cmd) { c.Env = append(c.Env, "NOTIFY_SOCKET="+address) }, "tells")
	r.wantCode(t, 0)
	r.wantLog(t, "i/o timeout")
}

// TestLogThatNobodyReads is no reason to end.
func TestLogThatNobodyReads(t *testing.T) {
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out.Close()
	begin(t, Config{}, func(c *exec.Cmd) { c.Stderr = in }, "exit", "7").wantCode(t, 7)
}

// TestReadyFDThatWasNotGiven may be one of the runtime's own.
func TestReadyFDThatWasNotGiven(t *testing.T) {
	for _, n := range []int{3, 4, 5, 99} {
		r := begin(t, Config{ReadyFD: n}, nil, "exit", "0")
		r.wantCode(t, codeCannotRun)
		r.wantLog(t, fmt.Sprintf("-ready-fd %d: ", n))
	}
}

func TestEnvironment(t *testing.T) {
	r := begin(t, Config{Env: []string{"ADDED=yes"}}, func(c *exec.Cmd) {
		c.Env = append(c.Env, "LISTEN_PID=1", "LISTEN_FDS=4", "LISTEN_FDNAMES=a", "WATCHDOG_PID=1", "WATCHDOG_USEC=5", VariablePID+"=1", "KEPT=yes", "ADDED=no")
	}, "shows")
	r.line(t, "supervised true")
	if name := r.line(t, "NOTIFY_SOCKET="); !strings.HasPrefix(name, "@") {
		t.Errorf("NOTIFY_SOCKET=%s", name)
	}
	for _, want := range []string{"WATCHDOG_PID=", "WATCHDOG_USEC=", "LISTEN_FDS=", "LISTEN_PID=", "LISTEN_FDNAMES=", "KEPT=yes", "ADDED=yes"} {
		if rest := r.line(t, want); rest != "" {
			t.Errorf("%s%s", want, rest)
		}
	}
	r.wantCode(t, 0)
}

func TestBackoff(t *testing.T) {
	var b backoff
	var got []time.Duration
	for range 11 {
		got = append(got, b.after(steady-1))
	}
	ms := time.Millisecond
	want := []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 12800 * ms, 25600 * ms, lastDelay, lastDelay}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if d := b.after(steady); d != firstDelay {
		t.Errorf("%v after a steady run", d)
	}
}

func TestStoreIsBounded(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	s := store{all: make([]stored, storeLimit)}
	n, err := syscall.Dup(int(r.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.add("one more", n); err == nil || len(s.all) != storeLimit {
		t.Errorf("%v, %d are stored", err, len(s.all))
	}
	if err := syscall.Close(n); err == nil {
		t.Error("what is not stored is not closed")
	}
}
