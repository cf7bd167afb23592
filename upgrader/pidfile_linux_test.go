package upgrader

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// mount mounts for the time of a test, or skips it.
func mount(t *testing.T, source, target, kind string, flags uintptr, data string) {
	t.Helper()
	err := syscall.Mount(source, target, kind, flags, data)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		t.Skip("mounting a file system needs root:", err)
	}
	must(t, err)
	t.Cleanup(func() {
		if err := syscall.Unmount(target, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// smallDisk returns the path of a pidfile on a file system with room for
// three files of a page.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	mount(t, "tmpfs", dir, "tmpfs", 0, "size=12k")
	return filepath.Join(dir, "app.pid")
}

// fillDisk takes all the room that is left and returns how to give it back.
func fillDisk(t *testing.T, path string) (free func()) {
	t.Helper()
	name := filepath.Join(filepath.Dir(path), "full")
	err := os.WriteFile(name, make([]byte, 1<<16), 0o644)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk does not fill up: %v", err)
	}
	return func() { must(t, os.Remove(name)) }
}

func wantFullDisk(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("error %v; want ENOSPC", err)
	}
}

func TestFullDiskIsFoundBeforeStarting(t *testing.T) {
	path := smallDisk(t)
	free := fillDisk(t, path)
	_, err := openPIDFile(path)
	wantFullDisk(t, err)
	wantFiles(t, path, "full")
	free()

	p := servingPIDFile(t, path)
	free = fillDisk(t, path)
	for range 2 {
		_, err = p.prepare()
		wantFullDisk(t, err)
		must(t, p.rollback())
		wantPID(t, path, os.Getpid())
		wantFiles(t, path, "app.pid", "full")
	}
	free()
	succeed(t, p, 4711)
	must(t, p.commit())
	wantPID(t, path, 4711)
}

func TestFullDiskAfterPrepareHindersNothing(t *testing.T) {
	for name, commit := range map[string]bool{"rolled back before commit": false, "rolled back after commit": true} {
		t.Run(name, func(t *testing.T) {
			path := smallDisk(t)
			p := servingPIDFile(t, path)
			f, err := p.prepare()
			must(t, err)
			fillDisk(t, path)
			must(t, p.name(2147483647))
			wantContent(t, f.Name(), "2147483647\n")
			if commit {
				must(t, p.commit())
				wantPID(t, path, 2147483647)
			}
			before := time.Now().Add(-time.Second)
			must(t, p.rollback())
			wantPID(t, path, os.Getpid())
			wantFiles(t, path, "app.pid", "full")
			fi, err := os.Stat(path)
			must(t, err)
			if fi.ModTime().Before(before) {
				t.Error("the end of the attempt is not told")
			}
		})
	}
}

func TestFullDiskDoesNotHinderTakingOver(t *testing.T) {
	path := smallDisk(t)
	p := servingPIDFile(t, path)
	s := succeed(t, p, 4711)
	must(t, p.closeFiles())
	fillDisk(t, path)
	must(t, s.install())
	wantPID(t, path, os.Getpid())
	must(t, s.remove())
	wantFiles(t, path, "full")
}

// A file system with files open for writing cannot be remounted read-only, so
// the directory is mounted on itself, and only that mount is.
func TestReadOnlyDirectory(t *testing.T) {
	path := pidfilePath(t)
	p := servingPIDFile(t, path)
	dir := filepath.Dir(path)
	mount(t, dir, dir, "", syscall.MS_BIND, "")
	must(t, syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""))

	if _, err := p.prepare(); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("prepare: %v; want EROFS", err)
	}
	wantPID(t, path, os.Getpid())
	wantFiles(t, path, "app.pid")

	if _, err := openPIDFile(filepath.Join(dir, "other.pid")); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("openPIDFile: %v; want EROFS", err)
	}
}
