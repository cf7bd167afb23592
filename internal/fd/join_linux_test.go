package fd

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTurnPassesToOneWhoWaits(t *testing.T) {
	held, err := NewTurn()
	if err != nil {
		t.Fatal(err)
	}
	const n = 3
	turns := make(chan *os.File, n)
	for range n {
		f, err := WaitingFor(held)
		if err != nil {
			t.Fatal(err)
		}
		if locked, err := TryLock(f); locked || err != nil {
			t.Fatalf("a second opening has the lock: %v, %v", locked, err)
		}
		go func() {
			if err := Await(f); err != nil {
				t.Error(err)
			}
			turns <- f
		}()
	}
	shared, err := Dup(held, "shared")
	if err != nil {
		t.Fatal(err)
	}
	_ = held.Close()
	select {
	case <-turns:
		t.Fatal("somebody's turn came while a duplicate was open")
	default:
	}
	_ = shared.Close()
	for range n { // each holds it until it is closed
		f := <-turns
		if len(turns) != 0 {
			t.Fatal("two have the lock")
		}
		_ = f.Close()
	}
}

// peers returns pidfds of this process, by the connections that it makes.
func peers(t *testing.T, n int) []*os.File {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	all := make([]*os.File, n)
	for i := range all {
		client, err := net.Dial("unix", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if all[i] = PeerProcess(c.(*net.UnixConn)); all[i] == nil {
			t.Fatal("no pidfd")
		}
		t.Cleanup(func() { all[i].Close() })
	}
	return all
}

// TestPeerProcessIsWhoConnected: the end of the process that has connected is
// seen, and it can be signaled.
func TestPeerProcessIsWhoConnected(t *testing.T) {
	peer := peers(t, 1)[0]
	if err := SignalProcess(peer, 0); err != nil {
		t.Errorf("signal 0 to this very process: %v", err)
	}
	self := ThisProcess()
	defer self.Close()
	a, err := AttributesOf(self)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := AttributesOf(peer); err != nil || a.Ino != b.Ino {
		t.Errorf("the peer is process %d, %v; this one is %d", b.Ino, err, a.Ino)
	}
}

// TestAwaitEnd: of a peer that ends, and until its pidfd is closed. No thread waits.
func TestAwaitEnd(t *testing.T) {
	before, n := threads(t), 50
	results := make(chan error, n)
	mine := peers(t, n)
	for _, f := range mine {
		go func() { results <- AwaitEnd(f) }()
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	number, err := unix.PidfdOpen(cmd.Process.Pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	other := os.NewFile(uintptr(number), "pidfd")
	defer other.Close()
	ended := make(chan error, 1)
	go func() { ended <- AwaitEnd(other) }()
	if err := SignalProcess(other, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("of a process that was killed: %v", err)
	}
	_ = cmd.Wait()
	if got := threads(t); got > before+n/2 {
		t.Errorf("%d threads wait for %d processes", got-before, n)
	}
	if len(results) > 0 {
		t.Errorf("this process has ended: %v", <-results)
	}
	for _, f := range mine {
		_ = f.Close()
		if err := <-results; err == nil {
			t.Fatal("a pidfd that was closed: this process has ended")
		}
	}
}

func threads(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestSignalProcessEndsIt(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f := openProcess(cmd.Process.Pid)
	if f == nil {
		t.Fatal("no pidfd")
	}
	defer f.Close()
	if err := SignalProcess(f, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := WaitProcess(f); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if SignalProcess(f, syscall.SIGKILL) == nil {
		t.Error("a dead process was signaled")
	}
}

func TestSignalProcessRefusesWhatIsNone(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if SignalProcess(f, 0) == nil {
		t.Error("/dev/null is no process")
	}
}
