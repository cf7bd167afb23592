package fd

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestNotifySendsADatagramWithDescriptors(t *testing.T) {
	for _, address := range []string{filepath.Join(t.TempDir(), "notify"), "@handover-notify-test"} {
		to, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer to.Close()
		if err := Notify(address, "FDSTORE=1", int(os.Stdin.Fd())); err != nil {
			t.Fatal(err)
		}
		b, oob := make([]byte, 100), make([]byte, 100)
		n, oobn, _, _, err := to.ReadMsgUnix(b, oob)
		if err != nil || string(b[:n]) != "FDSTORE=1" {
			t.Fatalf("%q, %v", b[:n], err)
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(messages) != 1 {
			t.Fatalf("%v, %v", messages, err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			t.Fatalf("%v, %v", fds, err)
		}
		_ = unix.Close(fds[0])
	}
}

func TestNotifyOfNobodyIsAnError(t *testing.T) {
	if err := Notify(filepath.Join(t.TempDir(), "nobody"), "READY=1"); err == nil {
		t.Error("sent")
	}
}

// A sibling is its starter's parent's child: the shell's here, whose status
// tells. The test binary runs as a child of the shell.
func TestWaitProcess(t *testing.T) {
	if !CanPollProcesses() {
		t.Skip("no pidfds before Linux 5.4")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Skip(err)
	}
	var pidfd int
	p, err := os.StartProcess(cat, []string{"cat"}, &os.ProcAttr{Files: []*os.File{r, os.Stderr, os.Stderr}, Sys: Started(&pidfd, true)})
	_ = r.Close()
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(pidfd), "pidfd")
	defer f.Close()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.Pid), "status"))
	if err != nil || !strings.Contains(string(status), "\nPPid:\t"+strconv.Itoa(os.Getppid())+"\n") {
		t.Errorf("it is no sibling: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- WaitProcess(f) }()
	select {
	case err := <-ended:
		t.Errorf("it has ended already: %v", err)
	default:
	}
	_ = w.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := p.Wait(); err == nil {
		t.Error("it was reaped here")
	}
}

// TestHasEnded: a child that has ended, and before and after it is reaped.
func TestHasEnded(t *testing.T) {
	if !CanPollProcesses() {
		t.Skip("no pidfds before Linux 5.4")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Skip(err)
	}
	var pidfd int
	p, err := os.StartProcess(cat, []string{"cat"}, &os.ProcAttr{Files: []*os.File{r, os.Stderr, os.Stderr}, Sys: Started(&pidfd, false)})
	_ = r.Close()
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(pidfd), "pidfd")
	if HasEnded(p.Pid, f) {
		t.Error("it runs")
	}
	_ = w.Close()
	if err := WaitProcess(f); err != nil {
		t.Fatal(err)
	}
	if !HasEnded(p.Pid, f) {
		t.Error("it is a zombie")
	}
	if _, err := p.Wait(); err != nil {
		t.Error(err)
	}
	if !HasEnded(p.Pid, f) {
		t.Error("it was reaped")
	}
	_ = f.Close()
	if !HasEnded(p.Pid, f) {
		t.Error("nobody waits for it any more")
	}
}

func TestHungUp(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, limit := range []time.Duration{0, time.Millisecond} {
		if HungUp(r, limit) {
			t.Error("the writing end is open")
		}
	}
	hungUp := make(chan bool)
	go func() { hungUp <- HungUp(r, time.Minute) }()
	_ = w.Close()
	if !<-hungUp {
		t.Error("the writing end was closed")
	}
}
