//go:build linux

package upgrader

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// leftover makes the path of a socket whose process was killed.
func leftover(t *testing.T, network string, age time.Duration) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app.sock")
	var c interface{ Close() error }
	var err error
	if network == "unixgram" {
		c, err = net.ListenUnixgram(network, &net.UnixAddr{Name: path, Net: network})
	} else {
		var ln *net.UnixListener
		if ln, err = net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network}); err == nil {
			ln.SetUnlinkOnClose(false)
			c = ln
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil { // unixgram unlinks at Close
		if err := syscall.Mknod(path, syscall.S_IFSOCK|0o755, 0); err != nil {
			t.Fatal(err)
		}
	}
	then := time.Now().Add(-age)
	if err := os.Chtimes(path, then, then); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestStaleUnixPathIsTakenOver(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket"} {
		u := newUpgrader(Options{})
		ln, err := u.listen(t.Context(), network, network, leftover(t, network, time.Minute))
		if err != nil {
			t.Errorf("%s: %v", network, err)
			continue
		}
		ln.Close()
	}
	u := newUpgrader(Options{})
	pc, err := u.listenPacket(t.Context(), "gram", "unixgram", leftover(t, "unixgram", time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	pc.Close()
}

// TestLiveUnixPathIsLeftAlone: one that somebody listens on, one that was made
// this instant, and one that is no socket.
func TestLiveUnixPathIsLeftAlone(t *testing.T) {
	live := filepath.Join(t.TempDir(), "live.sock")
	other, err := net.Listen("unix", live)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	past := time.Now().Add(-time.Minute)
	if err := os.Chtimes(live, past, past); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"live": live, "made just now": leftover(t, "unix", 0), "a file": file} {
		u := newUpgrader(Options{})
		if ln, err := u.listen(t.Context(), "x", "unix", path); err == nil {
			ln.Close()
			t.Errorf("%s: it was taken over", name)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c, err := net.Dial("unix", live); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}
