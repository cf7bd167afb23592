//go:build linux

package upgrader

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fakeManager is what a service manager is for a service: a socket for what it
// says, and a store for descriptors.
type fakeManager struct {
	t     *testing.T
	path  string
	heard chan saying

	mu     sync.Mutex
	stored map[string]*os.File
}

// saying is what one process has said.
type saying struct {
	pid  int
	text string
}

func newFakeManager(t *testing.T) *fakeManager {
	t.Helper()
	m := &fakeManager{t: t, path: filepath.Join(t.TempDir(), "notify"), heard: make(chan saying, 1000), stored: map[string]*os.File{}}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	must(t, err)
	rc, err := c.SyscallConn()
	must(t, err)
	must(t, rc.Control(func(n uintptr) { must(t, syscall.SetsockoptInt(int(n), syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1)) }))
	ended := make(chan struct{})
	t.Cleanup(func() { _ = c.Close(); <-ended })
	go func() {
		defer close(ended)
		defer close(m.heard)
		for m.read(c) {
		}
	}()
	return m
}

func (m *fakeManager) read(c *net.UnixConn) bool {
	b, oob := make([]byte, 4096), make([]byte, 4096)
	n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return false
	}
	d := saying{text: strings.ReplaceAll(string(b[:n]), "\n", " ")}
	controls, err := syscall.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		m.t.Error(err)
	}
	for _, control := range controls {
		if cred, err := syscall.ParseUnixCredentials(&control); err == nil {
			d.pid = int(cred.Pid)
		}
		if fds, err := syscall.ParseUnixRights(&control); err == nil {
			_, name, stores := strings.Cut(string(b[:n]), "\nFDNAME=")
			f := os.NewFile(uintptr(fds[0]), name)
			if stores {
				m.keep(name, f)
			} else {
				_ = f.Close() // BARRIER=1: who has sent it waits for that
			}
		}
	}
	m.heard <- d
	return true
}

func (m *fakeManager) keep(name string, f *os.File) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stored[name] = f
}

// kept is what the service has stored last under that name.
func (m *fakeManager) kept(name string) *os.File {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stored[name]
}

// service returns one that this manager manages, as our supervisor does.
func (m *fakeManager) service() *service {
	s := newService(m.t)
	s.env = []string{"NOTIFY_SOCKET=" + m.path, "UPGRADER_SUPERVISOR_PID=" + strconv.Itoa(os.Getpid())}
	return s
}

var unknown = regexp.MustCompile(`(MONOTONIC_USEC|MAINPIDFDID)=[0-9]+`)

// want reads as many datagrams as are wanted, and compares.
func (m *fakeManager) want(want ...saying) {
	m.t.Helper()
	var got []saying
	limit := time.After(deadline)
	for range want {
		select {
		case d := <-m.heard:
			d.text = unknown.ReplaceAllString(d.text, "$1=*")
			got = append(got, d)
		case <-limit:
			m.t.Fatalf("heard %v, want %v", got, want)
		}
	}
	if !slices.Equal(got, want) {
		m.t.Errorf("heard\n%v\nwant\n%v", got, want)
	}
}

// storedAs is the name of the program's one socket in the store.
const storedAs = "upgrader?for=127.0.0.1%3A0&kind=listener&name=main&net=tcp"

// wantChildOfTest: pid is a child of this process, which reaps it at the end.
func wantChildOfTest(t *testing.T, pid int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	if !strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", os.Getpid())) {
		t.Errorf("process %d is no sibling of its predecessor:\n%s", pid, status)
	}
}

// reap waits for a sibling, which only this process can.
func reap(t *testing.T, pid int) {
	t.Helper()
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil || ws.ExitStatus() != 0 {
		t.Errorf("process %d: exit status %d, %v", pid, ws.ExitStatus(), err)
	}
}

func TestManagerHearsOfEveryUpgradeInOrder(t *testing.T) {
	m := newFakeManager(t)
	s := m.service().start()
	old := s.pidfile()
	m.want(saying{old, "READY=1 STATUS=serving, generation 1"}, saying{old, "FDSTORE=1 FDNAME=" + storedAs})
	for generation := 2; generation <= 4; generation++ {
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
		pid := s.pidfile()
		m.want(
			saying{old, fmt.Sprintf("RELOADING=1 MONOTONIC_USEC=* STATUS=upgrading to generation %d", generation)},
			saying{old, fmt.Sprintf("MAINPID=%d MAINPIDFDID=*", pid)},
			saying{old, "BARRIER=1"},
			saying{pid, fmt.Sprintf("READY=1 STATUS=serving, generation %d", generation)},
			saying{pid, "FDSTORE=1 FDNAME=" + storedAs},
		)
		wantChildOfTest(t, pid)
		if generation > 2 {
			reap(t, old)
		}
		old = pid
	}
	s.signal(old, syscall.SIGTERM)
	m.want(saying{old, "STOPPING=1 STATUS=stopping"})
	reap(t, old)
	s.allGone()
	if len(m.heard) > 0 {
		t.Errorf("and then %v", <-m.heard)
	}
}

// A sibling's death is seen by its pidfd.
func TestSiblingThatDiesIsNoticed(t *testing.T) {
	for _, point := range []string{"start", "listen", "serving", "ran 50ms"} {
		t.Run(point, func(t *testing.T) {
			m := newFakeManager(t)
			s := m.service()
			s.config.Probation = 10_000
			s.config.Faults = []fault{{2, point, "kill"}}
			s.start()
			old := s.pidfile()
			if s.upgrade() {
				t.Fatal("upgraded")
			}
			fallen := s.waitFor("fault", func(r record) bool { return r.str("msg") == "fault" }).num("pid")
			if pid, _ := s.ask("hello"); pid != old || s.pidfile() != old {
				t.Errorf("process %d answers, the pidfile says %d, want %d", pid, s.pidfile(), old)
			}
			var ws syscall.WaitStatus
			if _, err := syscall.Wait4(fallen, &ws, 0, nil); err != nil || ws.Signal() != syscall.SIGKILL {
				t.Errorf("process %d: %v, %v", fallen, ws, err)
			}
		})
	}
}

// activated makes s start with descriptors from its manager: sd_listen_fds(3).
func (s *service) activated(names string, files ...*os.File) {
	s.command = func() *exec.Cmd {
		cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0"`, s.config.Exe)
		cmd.ExtraFiles = files
		return cmd
	}
	s.env = append(s.env, fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+names)
}

// The socket stays with the manager when the whole service is killed: who
// connects meanwhile waits, at the port that the system had chosen.
func TestStoredSocketOutlivesTheService(t *testing.T) {
	m := newFakeManager(t)
	s := m.service().start()
	pid, addr := s.pidfile(), s.addr("main")
	m.want(saying{pid, "READY=1 STATUS=serving, generation 1"}, saying{pid, "FDSTORE=1 FDNAME=" + storedAs})
	s.signal(pid, syscall.SIGKILL)
	s.allGone()
	c, err := net.Dial("tcp", addr)
	must(t, err)
	defer c.Close()

	next := m.service()
	next.activated(storedAs, m.kept(storedAs))
	next.start()
	if got := next.addr("main"); got != addr {
		t.Errorf("it listens on %s, want %s", got, addr)
	}
	if pid, _ := next.askOn(c, "hello"); pid != next.pidfile() {
		t.Errorf("process %d answers", pid)
	}
	if !next.upgrade() {
		t.Error("upgrade failed")
	}
}

// A manager's configuration says where a socket of that name listens, whatever
// the program asks for; every generation has it; its path is not ours to remove.
func TestSocketActivation(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			address := "127.0.0.1:0"
			if network == "unix" {
				address = filepath.Join(t.TempDir(), "socket")
			}
			ln, err := net.Listen(network, address)
			must(t, err)
			defer ln.Close()
			f, err := ln.(interface{ File() (*os.File, error) }).File()
			must(t, err)
			defer f.Close()

			s := newService(t)
			s.config.Listen[0] = [3]string{"main", network, map[string]string{"tcp": "127.0.0.2:0", "unix": "elsewhere"}[network]}
			s.activated("main:main", f, f)
			s.start()
			if got := s.addr("main"); got != ln.Addr().String() {
				t.Errorf("it listens on %s, want %s", got, ln.Addr())
			}
			for range 3 {
				if !s.upgrade() {
					t.Fatal("upgrade failed")
				}
			}
			c, err := net.Dial(network, ln.Addr().String())
			must(t, err)
			defer c.Close()
			if pid, generation := s.askOn(c, "hello"); pid != s.pidfile() || generation != 4 {
				t.Errorf("process %d of generation %d answers", pid, generation)
			}
			_ = c.Close()
			s.signal(s.pidfile(), syscall.SIGTERM)
			s.allGone()
			if network == "unix" {
				_, err := os.Stat(address)
				must(t, err)
			}
		})
	}
}

// Descriptors that were given no names are "unknown", "unknown:1" and so on.
func TestSocketActivationWithoutNames(t *testing.T) {
	s := newService(t)
	s.config.Listen = nil
	var files []*os.File
	var want []string
	for i := range 2 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		defer ln.Close()
		f, err := ln.(*net.TCPListener).File()
		must(t, err)
		defer f.Close()
		files, want = append(files, f), append(want, ln.Addr().String())
		s.config.Listen = append(s.config.Listen, [3]string{[]string{"unknown", "unknown:1"}[i], "tcp", "127.0.0.2:0"})
	}
	s.activated("", files...)
	s.env = slices.DeleteFunc(s.env, func(v string) bool { return strings.HasPrefix(v, "LISTEN_FDNAMES=") })
	s.start()
	if got := []string{s.addr("unknown"), s.addr("unknown:1")}; !slices.Equal(got, want) {
		t.Errorf("it listens on %v, want %v", got, want)
	}
	s.signal(s.pidfile(), syscall.SIGTERM)
	s.allGone()
}

// What was given to this process is not there for those that it starts.
func TestActivationDoesNotLeak(t *testing.T) {
	t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("LISTEN_FDS", "0")
	t.Setenv("LISTEN_FDNAMES", "")
	u := newUpgrader(Options{Logger: slog.New(slog.DiscardHandler)})
	_, err := u.begin()
	must(t, err)
	for _, name := range listenNames {
		if v, found := os.LookupEnv(name); found && name != "LISTEN_FDNAMES" {
			t.Errorf("%s=%s", name, v)
		}
	}
	env := withoutOurs([]string{"LISTEN_PID=1", "LISTEN_FDS=3", "LISTEN_FDNAMES=a", "WATCHDOG_PID=1", "WATCHDOG_USEC=5"})
	if !slices.Equal(env, []string{"WATCHDOG_USEC=5"}) {
		t.Errorf("the successor would find %q", env)
	}
}

// A successor's watchdog is its own, and not that of what it starts.
func TestWatchdogIsRewritten(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "1000000")
	t.Setenv("WATCHDOG_PID", "1")
	u := newUpgrader(Options{Logger: slog.New(slog.DiscardHandler)})
	u.openManager(&legacy{generation: 2})
	if got := os.Getenv("WATCHDOG_PID"); got != strconv.Itoa(os.Getpid()) {
		t.Errorf("WATCHDOG_PID=%s", got)
	}
}

// The program can read the name of a subprocess's parent only in the log.
func TestWarningOfAParentThatLosesUpgrades(t *testing.T) {
	sh, err := exec.LookPath("sh")
	must(t, err)
	for _, parent := range []string{"runsv", "innocent"} {
		t.Run(parent, func(t *testing.T) {
			s := newService(t)
			link := filepath.Join(t.TempDir(), parent)
			must(t, os.Symlink(sh, link))
			s.command = func() *exec.Cmd { return exec.Command(link, "-c", `"$0"; exit $?`, s.config.Exe) }
			s.start()
			warned := 0
			for _, r := range s.all() {
				if r.str("msg") == "process manager loses upgrades" {
					warned++
				}
			}
			if want := map[string]int{"runsv": 1, "innocent": 0}[parent]; warned != want {
				t.Errorf("warned %d times, want %d", warned, want)
			}
			s.signal(s.pidfile(), syscall.SIGTERM)
		})
	}
}

// A socket that the program closes while it serves is taken back, and one that
// it opens is stored.
func TestStoreFollowsTheProgram(t *testing.T) {
	m := newFakeManager(t)
	t.Setenv("NOTIFY_SOCKET", m.path)
	u := newAlone(t, Options{})
	must(t, u.Ready())
	self := os.Getpid()
	m.want(saying{self, "READY=1 STATUS=serving, generation 1"})
	ln := listenAs(t, u, "main", "tcp", "127.0.0.1:0")
	m.want(saying{self, "FDSTORE=1 FDNAME=" + storedAs})
	must(t, ln.Close())
	m.want(saying{self, "FDSTOREREMOVE=1 FDNAME=" + storedAs})
	u.Stop()
	m.want(saying{self, "STOPPING=1 STATUS=stopping"})
}

// A stored unix socket whose path a stop has removed is bound anew.
func TestStoredPathThatIsGone(t *testing.T) {
	m := newFakeManager(t)
	path := filepath.Join(t.TempDir(), "socket")
	s := m.service()
	s.config.Listen[0] = [3]string{"main", "unix", path}
	s.start()
	pid := s.pidfile()
	m.want(saying{pid, "READY=1 STATUS=serving, generation 1"})
	stored := <-m.heard
	name := strings.TrimPrefix(stored.text, "FDSTORE=1 FDNAME=")
	s.signal(pid, syscall.SIGTERM)
	m.want(saying{pid, "STOPPING=1 STATUS=stopping"})
	s.allGone()

	next := m.service()
	next.config.Listen[0] = s.config.Listen[0]
	next.activated(name, m.kept(name))
	next.start()
	m.want(saying{next.pidfile(), "FDSTOREREMOVE=1 FDNAME=" + name})
	c, err := net.Dial("unix", path)
	must(t, err)
	defer c.Close()
	_, err = fmt.Fprintln(c, "hello")
	must(t, err)
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		t.Error(err)
	}
}

// deafManager is a notification socket whose reader stores nothing.
func deafManager(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	ended := make(chan struct{})
	t.Cleanup(func() { _ = c.Close(); <-ended })
	go func() {
		defer close(ended)
		for b := make([]byte, 4096); ; { // descriptors that are not asked for are closed
			if _, err := c.Read(b); err != nil {
				return
			}
		}
	}()
	return path
}

// A manager does not see the death of a child of the old process before that has
// ended. So long the old one keeps the sockets, and nobody is refused.
func TestDrainingProcessKeepsTheSocketsOfItsChild(t *testing.T) {
	s := newService(t)
	s.env = []string{envNotify + "=" + deafManager(t)}
	s.start()
	old, addr := s.pidfile(), s.addr("main")
	busy, err := net.Dial("tcp", addr)
	must(t, err)
	defer busy.Close()
	_, err = fmt.Fprintln(busy, "sleep 600000") // it drains until it is killed
	must(t, err)
	if !s.upgrade() {
		t.Fatal("upgrade failed")
	}
	next := s.pidfile()
	s.signal(next, syscall.SIGKILL)
	s.eventually("the successor is dead, and left for who reaps this process's children", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", next))
		return err == nil && strings.Contains(string(stat), ") Z ")
	})
	for range 20 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatalf("while the old one drains: %v", err)
		}
		_ = c.Close()
	}
	s.signal(old, syscall.SIGKILL)
	s.eventually("nobody has the socket", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

// The service ends with a supervisor of ours: the next one starts another server.
func TestServerStopsWithItsSupervisor(t *testing.T) {
	for _, upgrades := range []int{0, 1} {
		t.Run(fmt.Sprint("after upgrades: ", upgrades), func(t *testing.T) {
			s := newService(t)
			var supervisor *exec.Cmd
			s.command = func() *exec.Cmd {
				supervisor = exec.Command("sh", "-c", envSupervisor+`=$$ "$0" & exec sleep 3600`, s.config.Exe)
				return supervisor
			}
			s.start()
			for range upgrades {
				if !s.upgrade() {
					t.Fatal("upgrade failed")
				}
			}
			last := s.pidfile()
			must(t, supervisor.Process.Kill())
			s.waitFor("stop", moved(last, "stopped"))
			s.allGone()
			if _, err := os.Stat(s.config.PIDFile); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("pidfile: %v", err)
			}
		})
	}
}

// A process that is killed when it has named its successor, and before it has
// confirmed it: the successor says the rest itself.
func TestProcessThatHasNamedItsSuccessorDies(t *testing.T) {
	m := newFakeManager(t)
	s := m.service()
	s.config.Faults = []fault{{1, "named", "kill"}}
	s.start()
	old := s.pidfile()
	s.signal(old, syscall.SIGUSR1)
	next := s.waitFor("successor", func(r record) bool { return moved(0, "serving")(r) && r.num("pid") != old }).num("pid")
	var named []saying
	limit := time.After(deadline)
	want := fmt.Sprintf("MAINPID=%d READY=1 STATUS=serving, generation 2", next)
	for len(named) < 2 {
		select {
		case said := <-m.heard:
			if strings.HasPrefix(said.text, "MAINPID=") {
				named = append(named, said)
			}
		case <-limit:
			t.Fatalf("heard %v, want one of %d", named, next)
		}
	}
	if named[0].pid != old || named[1] != (saying{next, want}) {
		t.Errorf("heard %v, want the name from %d, and %q", named, old, want)
	}
	s.signal(next, syscall.SIGTERM)
	reap(t, next)
	s.allGone()
}
