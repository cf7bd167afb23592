package upgrader_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/upgrader"
)

func TestSupervisePID1IsForProcess1(t *testing.T) {
	if code, done := upgrader.SupervisePID1(); done || code != 0 {
		t.Errorf("%d, %v", code, done)
	}
}

// TestSupervisePID1: in a pid namespace of its own a server is upgraded three times
// in a row, is killed, and stops, and process 1 lives until then.
func TestSupervisePID1(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid1")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./testdata/pid1").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `mount --make-rprivate / && mount -t proc proc /proc && exec "$0"`, path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout = in
	err = cmd.Start()
	in.Close()
	if errors.Is(err, syscall.EPERM) {
		t.Skip("a pid namespace needs root:", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	hung := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // all in the namespace end with it
		_ = cmd.Wait()
		hung.Stop()
		if t.Failed() {
			t.Logf("it has said\n%s", &said)
		}
	})
	lines := bufio.NewScanner(out)
	address, last := "", 1
	serving := func() {
		t.Helper()
		if !lines.Scan() {
			t.Fatal("it has ended")
		}
		f := strings.Fields(lines.Text()) // serving PID PPID ADDRESS
		if len(f) != 4 || f[2] != "1" || address != "" && f[3] != address {
			t.Fatalf("%q, want a child of process 1 at %s", f, address)
		}
		pid, err := strconv.Atoi(f[1])
		if err != nil || pid <= last {
			t.Fatalf("process %s after %d", f[1], last)
		}
		address, last = f[3], pid
	}
	serving()
	for range 3 {
		if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		serving() // it is confirmed, and so process 1 knows of it
	}
	answers(t, address, last)
	// It is killed from within its namespace, whose pids these are.
	kill := exec.CommandContext(t.Context(), "nsenter", "-t", strconv.Itoa(cmd.Process.Pid), "-p", "-m", "kill", "-9", strconv.Itoa(last))
	if out, err := kill.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	conn, err := net.Dial("tcp", address) // nobody may be there to accept it
	if err != nil {
		t.Fatalf("while nothing runs: %v", err)
	}
	conn.Close()
	serving()
	answers(t, address, last)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("stopped: %v", err)
	}
}

// answers waits until pid does: its predecessor may accept for as long as it
// has not been told that it was replaced.
func answers(t *testing.T, address string, pid int) {
	t.Helper()
	for range 1000 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(c)
		c.Close()
		if string(got) == strconv.Itoa(pid) {
			return
		}
	}
	t.Fatalf("process %d answers none of 1000", pid)
}

// A server in a container is process 1 there.
func ExampleSupervisePID1() {
	if code, done := upgrader.SupervisePID1(); done {
		os.Exit(code)
	}
	// The server begins here, with upgrader.New.
}
