//go:build linux

package upgrader

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// deadline bounds every wait for an event. It is for a test that hangs.
const deadline = 30 * time.Second

// service is the program under test in all its generations, and its log.
type service struct {
	t      *testing.T
	dir    string
	config config
	first  *exec.Cmd
	others sync.WaitGroup // that the test has started

	command func() *exec.Cmd // nil: config.Exe
	env     []string
	carrier string // how the sockets travel: see trigger

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each record
	records []record
	raw     []string
	pids    map[int]bool
	logs    int // that are open
	eof     bool
}

// The carriers.
const (
	inherits  = "inherit"   // SIGUSR1: the old process starts the new one
	takesOver = "take over" // the test starts the new one, and that comes for the sockets
)

var carriers = []string{inherits, takesOver}

// carriedBy is a service whose upgrades are made in that way.
func carriedBy(t *testing.T, carrier string) *service {
	t.Helper()
	s := newService(t)
	s.carrier = carrier
	if carrier == takesOver {
		s.config.Control = filepath.Join(s.dir, "control")
	}
	return s
}

type record map[string]any

func (r record) str(key string) string { s, _ := r[key].(string); return s }
func (r record) num(key string) int    { f, _ := r[key].(float64); return int(f) }

func newService(t *testing.T) *service {
	t.Helper()
	dir := t.TempDir()
	s := &service{t: t, dir: dir, changed: make(chan struct{}), pids: map[int]bool{}}
	s.config = config{PIDFile: filepath.Join(dir, "app.pid"), Probation: 200, Listen: [][3]string{{"main", "tcp", "127.0.0.1:0"}}}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.config.Exe = filepath.Join(dir, "app")
	if err := os.Symlink(self, s.config.Exe); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *service) configure() {
	s.t.Helper()
	b, err := json.Marshal(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	tmp := filepath.Join(s.dir, "config.tmp")
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(s.dir, "config")); err != nil {
		s.t.Fatal(err)
	}
}

// start runs the first generation until it is ready.
func (s *service) start() *service {
	s.t.Helper()
	s.configure()
	s.first = s.run()
	s.t.Cleanup(s.finish)
	s.waitFor("ready", func(r record) bool { return r.str("msg") == "ready" })
	return s
}

// run starts a process that is nobody's successor yet.
func (s *service) run(env ...string) *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(s.config.Exe)
	if s.command != nil {
		cmd = s.command()
	}
	// The race detector's runtime sleeps for a second at exit unless told not to.
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", envProgram+"="+filepath.Join(s.dir, "config"))
	cmd.Env = append(append(cmd.Env, s.env...), env...)
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	_ = w.Close()
	s.mu.Lock()
	s.pids[cmd.Process.Pid] = true
	s.logs++
	s.mu.Unlock()
	go s.read(r)
	return cmd
}

// comes starts a process that comes for the sockets of old.
func (s *service) comes(old int, env ...string) *exec.Cmd {
	s.t.Helper()
	_, generation := s.ask("who")
	env = append(env, fmt.Sprintf("%s=%d %d", envComes, generation+1, old))
	cmd := s.run(env...)
	s.others.Go(func() { _ = cmd.Wait() }) // how it ends is in the log
	return cmd
}

// trigger begins an upgrade.
func (s *service) trigger(old int) {
	s.t.Helper()
	if s.carrier == takesOver {
		s.comes(old)
		return
	}
	s.signal(old, syscall.SIGUSR1)
}

func (s *service) read(r *os.File) {
	defer r.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		s.mu.Lock()
		rec := record{}
		if json.Unmarshal(lines.Bytes(), &rec) == nil {
			if pid := rec.num("pid"); pid > 1 { // 1: it is in a namespace of its own
				s.pids[pid] = true
			}
			s.records = append(s.records, rec)
		}
		s.raw = append(s.raw, lines.Text())
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
	}
	s.mu.Lock()
	s.logs--
	s.eof = s.logs == 0
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
}

// waitFor waits for the first record after the mark that matches.
func (s *service) waitFor(what string, match func(record) bool) record {
	s.t.Helper()
	return s.waitAfter(0, what, match)
}

func (s *service) mark() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.records)
}

func (s *service) waitAfter(from int, what string, match func(record) bool) record {
	s.t.Helper()
	limit := time.After(deadline)
	for {
		s.mu.Lock()
		for i := from; i < len(s.records); i++ {
			if match(s.records[i]) {
				r := s.records[i]
				s.mu.Unlock()
				return r
			}
		}
		changed, eof := s.changed, s.eof
		s.mu.Unlock()
		if eof {
			s.t.Fatalf("all processes ended before %s", what)
		}
		select {
		case <-changed:
		case <-limit:
			s.t.Fatalf("no %s within %v", what, deadline)
		}
	}
}

func moved(pid int, to string) func(record) bool {
	return func(r record) bool {
		return r.str("msg") == "state changed" && r.str("to") == to && (pid == 0 || r.num("pid") == pid)
	}
}

func (s *service) pidfile() int {
	s.t.Helper()
	b, err := os.ReadFile(s.config.PIDFile)
	if err != nil {
		s.t.Fatalf("pidfile: %v", err)
	}
	pid, err := strconv.Atoi(strings.TrimSuffix(string(b), "\n"))
	if err != nil || !strings.HasSuffix(string(b), "\n") {
		s.t.Fatalf("pidfile holds %q", b)
	}
	return pid
}

func (s *service) signal(pid int, sig syscall.Signal) {
	s.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		s.t.Fatalf("signal %v to %d: %v", sig, pid, err)
	}
}

// upgrade triggers one and waits for the verdict.
func (s *service) upgrade() (confirmed bool) {
	s.t.Helper()
	s.configure()
	old, from := s.pidfile(), s.mark()
	s.trigger(old)
	r := s.waitAfter(from, "verdict", func(r record) bool {
		return moved(old, "draining")(r) || moved(old, "serving")(r)
	})
	if r.str("to") != "draining" {
		return false
	}
	s.waitAfter(from, "successor", func(r record) bool { return moved(0, "serving")(r) && r.num("pid") != old })
	return true
}

func (s *service) addr(name string) string {
	s.t.Helper()
	return s.waitFor("listener "+name, func(r record) bool {
		return r.str("msg") == "listening" && r.str("name") == name
	}).str("addr")
}

// ask sends a line over a new connection and returns who answered.
func (s *service) ask(line string) (pid, generation int) {
	s.t.Helper()
	c, err := net.Dial("tcp", s.addr("main"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	return s.askOn(c, line)
}

func (s *service) askOn(c net.Conn, line string) (pid, generation int) {
	s.t.Helper()
	_ = c.SetDeadline(time.Now().Add(deadline))
	if _, err := fmt.Fprintln(c, line); err != nil {
		s.t.Fatal(err)
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		s.t.Fatalf("answer to %q: %q, %v", line, answer, err)
	}
	var echo string
	if _, err := fmt.Sscanf(answer, "%d %d %s", &pid, &generation, &echo); err != nil {
		s.t.Fatalf("answer %q: %v", answer, err)
	}
	return pid, generation
}

// allGone waits until no process of the service is left: the log's last writer
// has closed it.
func (s *service) allGone() {
	s.t.Helper()
	limit := time.After(deadline)
	for {
		s.mu.Lock()
		changed, eof := s.changed, s.eof
		s.mu.Unlock()
		if eof {
			return
		}
		select {
		case <-changed:
		case <-limit:
			s.t.Fatal("processes left behind")
		}
	}
}

// eventually waits for what leaves no record.
func (s *service) eventually(what string, holds func() bool) {
	s.t.Helper()
	for limit := time.Now().Add(deadline); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			s.t.Fatalf("%s: not within %v", what, deadline)
		}
	}
}

func (s *service) all() []record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]record(nil), s.records...)
}

func (s *service) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.raw...)
}

// finish stops what runs and fails the test if something is left.
func (s *service) finish() {
	s.mu.Lock()
	pids := []int{}
	for pid := range s.pids {
		pids = append(pids, pid)
	}
	s.mu.Unlock()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGCONT)
		_ = syscall.Kill(pid, syscall.SIGTERM)
	}
	exited := make(chan struct{})
	go func() { _ = s.first.Wait(); close(exited) }()
	limit := time.After(deadline)
	for {
		s.mu.Lock()
		changed, eof := s.changed, s.eof
		s.mu.Unlock()
		if eof {
			break
		}
		select {
		case <-changed:
			continue
		case <-limit:
			s.t.Error("processes left behind")
			for _, pid := range pids {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		break
	}
	<-exited
	s.others.Wait()
	if s.t.Failed() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.t.Logf("log of all generations:\n%s", strings.Join(s.raw, "\n"))
	}
}

func TestUpgradeReplacesTheProcess(t *testing.T) {
	for _, carrier := range carriers {
		t.Run(carrier, func(t *testing.T) { testUpgradeReplacesTheProcess(t, carrier) })
	}
}

func testUpgradeReplacesTheProcess(t *testing.T, carrier string) {
	t.Helper()
	s := carriedBy(t, carrier).start()
	for generation := 2; generation <= 5; generation++ {
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
		pid, g := s.ask("hello")
		if g != generation || pid != s.pidfile() {
			t.Fatalf("process %d of generation %d answers, pidfile says %d, want generation %d", pid, g, s.pidfile(), generation)
		}
	}
}
