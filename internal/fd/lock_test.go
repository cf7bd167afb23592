//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package fd

import (
	"os"
	"path/filepath"
	"testing"
)

// opens returns n separate opens of one file.
func opens(t *testing.T, n int) []*os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	files := make([]*os.File, n)
	for i := range files {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		files[i] = f
	}
	return files
}

func wantLock(t *testing.T, f *os.File, want bool) {
	t.Helper()
	if got, err := TryLock(f); got != want || err != nil {
		t.Errorf("TryLock = %v, %v; want %v", got, err, want)
	}
}

func wantLocked(t *testing.T, f *os.File, want bool) {
	t.Helper()
	if got, err := Locked(f); got != want || err != nil {
		t.Errorf("Locked = %v, %v; want %v", got, err, want)
	}
}

func TestLockExcludesAnotherOpen(t *testing.T) {
	f := opens(t, 2)
	wantLock(t, f[0], true)
	wantLock(t, f[0], true)
	wantLock(t, f[1], false)
	wantLocked(t, f[1], true)
	f[0].Close()
	wantLocked(t, f[1], false)
	wantLock(t, f[1], true)
}

func TestLockLivesAsLongAsADuplicate(t *testing.T) {
	f := opens(t, 2)
	wantLock(t, f[0], true)
	dup, err := Dup(f[0], "duplicate")
	if err != nil {
		t.Fatal(err)
	}
	f[0].Close()
	wantLock(t, f[1], false)
	wantLock(t, dup, true)
	dup.Close()
	wantLock(t, f[1], true)
}

func TestLockedLeavesNoLock(t *testing.T) {
	f := opens(t, 3)
	wantLocked(t, f[0], false)
	wantLocked(t, f[1], false)
	wantLock(t, f[2], true)
}

func TestLockOfAClosedFileIsAnError(t *testing.T) {
	f := opens(t, 1)[0]
	f.Close()
	if ok, err := TryLock(f); ok || err == nil {
		t.Errorf("TryLock = %v, %v", ok, err)
	}
}

func TestOpenNoFollowRefusesALink(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if f, err := OpenNoFollow(link); err == nil {
		t.Errorf("OpenNoFollow = %v, %v", f, err)
	}
}
