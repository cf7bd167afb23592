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

// TestPeerProcessIsWhoConnected: the end of the process that has connected is
// seen, and it can be signaled.
func TestPeerProcessIsWhoConnected(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	peer := PeerProcess(c.(*net.UnixConn))
	if peer == nil {
		t.Fatal("no pidfd")
	}
	defer peer.Close()
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
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	before, n := threads(t), 50
	results := make(chan error, n)
	mine := make([]*os.File, n)
	for i := range mine {
		client, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if mine[i] = PeerProcess(c.(*net.UnixConn)); mine[i] == nil {
			t.Fatal("no pidfd")
		}
		go func() { results <- AwaitEnd(mine[i]) }()
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
