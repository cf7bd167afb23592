package fd

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

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
	p, err := os.StartProcess(cat, []string{"cat"}, &os.ProcAttr{Files: []*os.File{r, nil, nil}, Sys: Started(&pidfd, true)})
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
