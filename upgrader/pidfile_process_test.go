//go:build linux

package upgrader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// tmpfs mounts a small file system, for a disk that is full or read-only.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("mount tmpfs: %v: this test needs root", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestPIDFileFaultsFailBeforeAnythingIsStarted: what is wrong with the pidfile
// is found while the old process serves, and the next upgrade works once it is
// mended.
func TestPIDFileFaultsFailBeforeAnythingIsStarted(t *testing.T) {
	t.Parallel()
	// A mount of its own, because the server has a file open for writing there.
	readOnly := func(t *testing.T, dir, _ string) {
		t.Helper()
		err := errors.Join(syscall.Mount(dir, dir, "", syscall.MS_BIND, ""),
			syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""))
		if err != nil {
			t.Fatal(err)
		}
	}
	readWrite := func(t *testing.T, dir, _ string) {
		t.Helper()
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
	tests := map[string]struct {
		spoil, mend func(t *testing.T, dir, pidfile string)
		says        string
	}{
		"disk full": {
			func(t *testing.T, dir, _ string) {
				t.Helper()
				if err := os.WriteFile(dir+"/filler", make([]byte, 1<<20), 0o644); err == nil {
					t.Fatal("the disk is not full")
				}
			},
			func(_ *testing.T, dir, _ string) { _ = os.Remove(dir + "/filler") }, "no space left",
		},
		"read-only": {readOnly, readWrite, "read-only"},
		"symlink in its place": {
			func(_ *testing.T, dir, p string) { _ = os.Rename(p, dir+"/kept"); _ = os.Symlink("kept", p) },
			func(_ *testing.T, dir, p string) { _ = os.Rename(dir+"/kept", p) }, "symbolic link",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			dir := tmpfs(t, "64k")
			s.config.PIDFile = filepath.Join(dir, "app.pid")
			s.start()
			old, from := s.pidfile(), s.mark()
			p := s.probe()
			tt.spoil(t, dir, s.config.PIDFile)
			if s.upgrade() {
				t.Fatal("upgraded")
			}
			text := s.waitAfter(from, "verdict", moved(old, "serving")).str("err")
			if !strings.Contains(text, tt.says) || !strings.Contains(text, "upgrader: prepare") {
				t.Errorf("the log says %q, want %q in the phase prepare", text, tt.says)
			}
			s.mu.Lock()
			started := len(s.pids) - 1
			s.mu.Unlock()
			if started != 0 {
				t.Errorf("%d processes were started", started)
			}
			s.serves(old, 1)
			tt.mend(t, dir, s.config.PIDFile)
			if !s.upgrade() {
				t.Fatal("the next upgrade failed")
			}
			p.check(t, 0)
		})
	}
}

// TestDeletedPIDFileComesBack: an operator's rm is no reason to fail.
func TestDeletedPIDFileComesBack(t *testing.T) {
	t.Parallel()
	s := newService(t).start()
	old := s.pidfile()
	if err := os.Remove(s.config.PIDFile); err != nil {
		t.Fatal(err)
	}
	from := s.mark()
	s.signal(old, syscall.SIGUSR1)
	r := s.waitAfter(from, "successor", func(r record) bool { return moved(0, "serving")(r) && r.num("pid") != old })
	s.serves(r.num("pid"), 2)
}

// TestPIDFileIsHeldThroughAllGenerations: New fails with the holder's pid while any
// generation serves, and works when the service has gone, killed or not.
func TestPIDFileIsHeldThroughAllGenerations(t *testing.T) {
	t.Parallel()
	s := newService(t).start()
	for range 3 {
		_, err := openPIDFile(s.config.PIDFile)
		var held *PIDFileHeldError
		if err == nil || !errors.As(err, &held) || held.PID != s.pidfile() {
			t.Fatalf("a second instance: %v, want it held by %d", err, s.pidfile())
		}
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
	}
	last := s.pidfile()
	s.signal(last, syscall.SIGKILL)
	s.gone(last)
	s.eventually("the pidfile of a killed process is free", func() bool {
		p, err := openPIDFile(s.config.PIDFile)
		if err != nil {
			return false
		}
		return p.close() == nil
	})
}

// TestPIDFileChangesWithTheVersion: a new version may keep another pidfile, or
// none; the old one does not stay behind, and comes back at a rollback.
func TestPIDFileChangesWithTheVersion(t *testing.T) {
	t.Parallel()
	s := newService(t).start()
	first := s.config.PIDFile
	old := s.pidfile()
	second := filepath.Join(s.dir, "other.pid")

	s.config.PIDFile = second
	s.config.Faults = []fault{{2, "ran 50ms", "exit1"}}
	s.configure()
	from := s.mark()
	s.signal(old, syscall.SIGUSR1)
	s.waitAfter(from, "rollback", moved(old, "serving"))
	s.config.PIDFile = first
	s.serves(old, 1)

	s.config.PIDFile, s.config.Faults = second, nil
	s.configure()
	from = s.mark()
	s.signal(old, syscall.SIGUSR1)
	r := s.waitAfter(from, "successor", func(r record) bool { return moved(0, "serving")(r) && r.num("pid") != old })
	s.eventually("the first pidfile is removed", func() bool { _, err := os.Lstat(first); return err != nil })
	s.serves(r.num("pid"), 2)

	s.config.PIDFile = ""
	s.configure()
	from = s.mark()
	s.signal(r.num("pid"), syscall.SIGUSR1)
	s.waitAfter(from, "drained", func(x record) bool { return x.str("msg") == "drained" && x.num("pid") == r.num("pid") })
	s.eventually("the second pidfile is removed", func() bool { _, err := os.Lstat(second); return err != nil })

	s.config.PIDFile = first // and back
	s.configure()
	third, from := 0, s.mark()
	for _, x := range s.all() {
		if x.str("msg") == "ready" && x.num("generation") == 3 {
			third = x.num("pid")
		}
	}
	s.signal(third, syscall.SIGUSR1)
	s.waitAfter(from, "generation 4", func(x record) bool { return moved(0, "serving")(x) && x.num("generation") == 4 })
	s.serves(s.pidfile(), 4)
}

// TestReaderSeesOnlyLivePIDs: a reader in a tight loop finds a whole pid of a
// process that lives, through upgrades that succeed and upgrades that fail.
func TestReaderSeesOnlyLivePIDs(t *testing.T) {
	t.Parallel()
	s := newService(t).start()
	var reads atomic.Int64
	bad := make(chan string, 1)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if complaint := readOnce(s.config.PIDFile); complaint != "" {
				select {
				case bad <- complaint:
				default:
				}
				return
			}
			reads.Add(1)
		}
	}()
	for i := range 12 {
		s.config.Faults = nil
		if i%3 == 1 {
			s.config.Faults = []fault{{s.generation() + 1, "listen", "exit1"}}
		}
		if got, want := s.upgrade(), i%3 != 1; got != want {
			t.Errorf("upgrade %d: %v, want %v", i, got, want)
		}
	}
	close(stop)
	<-stopped
	select {
	case complaint := <-bad:
		t.Error(complaint)
	default:
	}
	if reads.Load() < 100 {
		t.Errorf("only %d reads", reads.Load())
	}
}

// readOnce complains about a pidfile that does not name a living process.
func readOnce(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	pid, err := strconv.Atoi(strings.TrimSuffix(string(b), "\n"))
	if err != nil || !strings.HasSuffix(string(b), "\n") {
		return fmt.Sprintf("content %q", b)
	}
	if !dead(pid) {
		return ""
	}
	// The process may have been replaced since the read.
	again, err := os.ReadFile(path)
	if err != nil || string(again) == string(b) {
		return fmt.Sprintf("process %d is dead (%v)", pid, err)
	}
	return ""
}

func (s *service) generation() int {
	_, g := s.ask("who")
	return g
}
