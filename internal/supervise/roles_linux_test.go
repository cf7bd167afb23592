package supervise

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/fd"
)

// roles are what the test binary is if its first argument says so: the
// supervisor, or one of the processes below it.
var roles = map[string]func(args []string){
	"supervise": superviseRole,
	"exit":      exitRole,
	"stop":      stopRole,
	"chain":     chainRole,
	"stranger":  strangerRole,
	"signals":   signalsRole,
	"leaves":    leavesRole,
	"stubborn":  stubbornRole,
	"deserts":   desertsRole,
	"moves":     movesRole,
	"stays":     staysRole,
	"claims":    claimsRole,
	"stores":    storesRole,
	"tells":     tellsRole,
	"shows":     showsRole,
}

const rolePrefix = "role:"

func TestMain(m *testing.M) {
	Trampoline()
	if len(os.Args) > 1 {
		if name, ok := strings.CutPrefix(os.Args[1], rolePrefix); ok {
			roles[name](os.Args[2:])
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// as is the command line of a role.
func as(role string, args ...string) []string {
	return append([]string{"/proc/self/exe", rolePrefix + role}, args...)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "role:", err)
		os.Exit(99)
	}
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func notify(text string, fds ...int) { check(fd.Notify(os.Getenv("NOTIFY_SOCKET"), text, fds...)) }

// spawn starts a role as a child. Its standard input ends when this process does.
func spawn(role string, args ...string) int {
	line := as(role, args...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	_, err := cmd.StdinPipe()
	check(err)
	check(cmd.Start())
	return cmd.Process.Pid
}

// sibling starts a role as a child of the supervisor.
func sibling(role string, args ...string) int {
	line := as(role, args...)
	pid, err := syscall.ForkExec(line[0], line, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_PARENT},
	})
	check(err)
	return pid
}

// waitForever is a select{} that the runtime does not take for a deadlock.
func waitForever() { <-time.After(time.Hour) }

func untilParentEnds() { _, _ = io.Copy(io.Discard, os.Stdin) }

func superviseRole(args []string) {
	var c Config
	check(json.Unmarshal([]byte(args[0]), &c))
	code, err := Run(c)
	if err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
	}
	os.Exit(code)
}

// exitRole ends with a code, or by a signal if it is negative.
func exitRole(args []string) {
	code, err := strconv.Atoi(args[0])
	check(err)
	if code < 0 {
		check(syscall.Kill(os.Getpid(), syscall.Signal(-code)))
		waitForever()
	}
	os.Exit(code)
}

// stopRole ends as exitRole does, and has said that it is about to.
func stopRole(args []string) {
	notify("STOPPING=1")
	exitRole(args)
}

// chainRole hands over to the next and ends at once; the last ends with 42.
func chainRole(args []string) {
	n, err := strconv.Atoi(args[0])
	check(err)
	if len(args) > 1 {
		untilParentEnds()
	}
	if n == 0 {
		os.Exit(42)
	}
	notify(fmt.Sprintf("MAINPID=%d", spawn("chain", strconv.Itoa(n-1), "next")))
}

// strangerRole is a main process with a child that would like to be it. It
// waits for that, and is obeyed in nothing foolish.
func strangerRole(args []string) {
	if len(args) > 0 {
		notify(fmt.Sprintf("MAINPID=%d\nREADY=1\nSTATUS=stranger", os.Getpid()))
		return
	}
	line := as("stranger", "child")
	check(exec.Command(line[0], line[1:]...).Run())
	for _, pid := range []string{"1", "0", "-1", "x", strconv.Itoa(os.Getppid())} {
		notify("MAINPID=" + pid)
	}
	os.Exit(5)
}

// signalsRole hands over, and its successor says what it gets until SIGTERM. Both
// say when they are ready.
func signalsRole(args []string) {
	if len(args) == 0 {
		signal.Ignore(syscall.SIGTERM)
		successor := sibling("signals", "next")
		notify(fmt.Sprintf("MAINPID=%d", successor))
		say("ready")
		waitForever()
	}
	got := make(chan os.Signal, 8)
	signal.Notify(got)
	signal.Reset(syscall.SIGURG)
	say("ready")
	for s := range got {
		say("got %v", s)
		if s == syscall.SIGTERM {
			os.Exit(3)
		}
	}
}

// leavesRole has a stubborn child; at SIGTERM it ends, and the child stays.
func leavesRole([]string) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	spawn("stubborn")
	<-stop
	os.Exit(3)
}

// stubbornRole says that it was told to end, and does not.
func stubbornRole([]string) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	say("ready %d", os.Getpid())
	for range stop {
		say("told to end")
	}
}

// desertsRole names a successor that has ended, and ends well.
func desertsRole([]string) {
	line := as("exit", "0")
	cmd := exec.Command(line[0], line[1:]...)
	check(cmd.Run())
	notify(fmt.Sprintf("MAINPID=%d", cmd.Process.Pid))
}

// movesRole is replaced by a process from elsewhere.
func movesRole(args []string) { notify("MAINPID=" + args[0]) }

// staysRole is one that finds the successor that it has named gone, and stays.
func staysRole([]string) {
	desertsRole(nil)
	notify(fmt.Sprintf("MAINPID=%d", os.Getpid()))
}

// claimsRole has a successor that says itself that it is the main process, before or
// after its predecessor is killed.
func claimsRole(args []string) {
	if len(args) == 1 {
		sibling("claims", args[0], strconv.Itoa(os.Getpid()))
		waitForever()
	}
	early, predecessor := args[0] == "early", args[1]
	pid, err := strconv.Atoi(predecessor)
	check(err)
	claim := func() { notify(fmt.Sprintf("MAINPID=%d\nREADY=1", os.Getpid())) }
	if early {
		claim()
	}
	check(syscall.Kill(pid, syscall.SIGKILL))
	if !early {
		for parentOf(pid) == os.Getppid() { // it is reaped
			time.Sleep(time.Millisecond)
		}
		claim()
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	say("ready")
	<-stop
	os.Exit(3)
}

// storesRole listens and stores its socket, or has got it back. It answers
// each connection with what it was given, and crashes.
func storesRole([]string) {
	if os.Getenv("LISTEN_FDS") == "" {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		check(err)
		f := dup(ln)
		r, _, err := os.Pipe()
		check(err)
		notify("FDSTORE=1\nFDNAME=http", f)
		notify("FDSTORE=1\nFDNAME=again", f)
		notify("FDSTORE=1\nFDNAME=gone\nFDPOLL=0", dup(r))
		notify("FDSTORE=1\nFDNAME=a:b", dup(r))
		notify("FDSTOREREMOVE=1\nFDNAME=gone")
		say("address %s", ln.Addr())
		c, err := ln.Accept()
		check(err)
		c.Close()
		os.Exit(1)
	}
	f, err := fd.Inherit(3, "http")
	check(err)
	ln, err := net.FileListener(f)
	check(err)
	c, err := ln.Accept()
	check(err)
	fmt.Fprintf(c, "%s %s %v", os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES"), os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()))
}

func dup(c any) int {
	sc, ok := c.(syscall.Conn)
	if !ok {
		check(fmt.Errorf("%T", c))
	}
	raw, err := sc.SyscallConn()
	check(err)
	n := -1
	check(raw.Control(func(d uintptr) { n, err = syscall.Dup(int(d)) }))
	check(err)
	syscall.CloseOnExec(n)
	return n
}

// tellsRole says all that there is to say. It ends when a barrier has been
// passed: by then all before that has been read.
func tellsRole([]string) {
	notify("STATUS=one\nFDNAME=x\nX=y")
	notify(fmt.Sprintf("MAINPID=%d\nREADY=1\nSTATUS=two", os.Getpid()))
	notify("RELOADING=1\nMONOTONIC_USEC=5")
	notify("FDSTOREREMOVE=1\nFDNAME=none")
	notify("READY=1\nERRNO=2")
	notify("EXTEND_TIMEOUT_USEC=7")
	notify("WATCHDOG=1")
	notify("STOPPING=1")
	r, w, err := os.Pipe()
	check(err)
	barrier := dup(w)
	check(w.Close())
	notify("BARRIER=1", barrier)
	check(syscall.Close(barrier))
	_, _ = io.Copy(io.Discard, r)
}

// showsRole prints its environment.
func showsRole([]string) {
	say("supervised %v", os.Getenv(VariablePID) == strconv.Itoa(os.Getppid()))
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "KEPT", "ADDED"} {
		say("%s=%s", name, os.Getenv(name))
	}
}
