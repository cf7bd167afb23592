//go:build unix

package upgrader

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/fd"
)

// openedImage is a binary of its own, opened for a check. Its file is older than
// what the clock of its file system can tell from now.
func openedImage(t *testing.T) *image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app")
	copyTo(t, path, self(t), 4096, nil)
	i, err := openImage(path)
	must(t, err)
	t.Cleanup(func() { i.Close() })
	clock := filepath.Join(filepath.Dir(path), "clock")
	for limit := time.Now().Add(patience); changeTime(t, clock) <= i.was.Changed; {
		if time.Now().After(limit) {
			t.Fatal("the clock of the file system stands still")
		}
	}
	return i
}

// changeTime writes to a file and returns the time at which that changed it.
func changeTime(t *testing.T, path string) int64 {
	t.Helper()
	must(t, os.WriteFile(path, []byte("tick"), 0o600))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	a, err := fd.AttributesOf(f)
	must(t, err)
	return a.Changed
}

// TestImageThatChanged is not executed: what was checked has other bytes, other
// permissions, or another owner by now. That it has lost its name is no change
// of it where it is executed by its descriptor.
func TestImageThatChanged(t *testing.T) {
	errGone := errMoved
	if byDescriptor {
		errGone = nil
	}
	writeInPlace := func(t *testing.T, path string, at int64) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt([]byte("other"), at)
		must(t, errors.Join(err, f.Close()))
	}
	replace := func(t *testing.T, path string) {
		t.Helper()
		must(t, os.WriteFile(path+".new", []byte("another file"), 0o755))
		must(t, os.Rename(path+".new", path))
	}
	tests := []struct {
		name   string
		change func(t *testing.T, i *image)
		want   error
	}{
		{"nothing happened", func(*testing.T, *image) {}, nil},
		{"it was read", func(t *testing.T, i *image) { _, err := os.ReadFile(i.path); must(t, err) }, nil},
		{"another file beside it", func(t *testing.T, i *image) { must(t, os.WriteFile(i.path+".new", nil, 0o755)) }, nil},
		{"written to", func(t *testing.T, i *image) { writeInPlace(t, i.path, 1000) }, errChanged},
		{"written to at its end", func(t *testing.T, i *image) { writeInPlace(t, i.path, i.was.Size) }, errChanged},
		{"truncated", func(t *testing.T, i *image) { must(t, os.Truncate(i.path, 0)) }, errChanged},
		{"written to, and its time put back", func(t *testing.T, i *image) {
			writeInPlace(t, i.path, 1000)
			must(t, os.Chtimes(i.path, time.Time{}, time.Unix(0, i.was.Modified)))
		}, errChanged},
		{"writable by others", func(t *testing.T, i *image) { must(t, os.Chmod(i.path, 0o777)) }, errChanged},
		{"replaced", func(t *testing.T, i *image) { replace(t, i.path) }, errGone},
		{"renamed", func(t *testing.T, i *image) { must(t, os.Rename(i.path, i.path+".old")) }, errGone},
		{"renamed and replaced", func(t *testing.T, i *image) {
			must(t, os.Rename(i.path, i.path+".old"))
			replace(t, i.path)
		}, errGone},
		{"removed", func(t *testing.T, i *image) { must(t, os.Remove(i.path)) }, errGone},
		{"renamed and written to", func(t *testing.T, i *image) {
			must(t, os.Rename(i.path, i.path+".old"))
			writeInPlace(t, i.path+".old", 1000)
		}, errors.Join(errGone, errChanged)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			i := openedImage(t)
			tt.change(t, i)
			if err := i.unchanged(); (err == nil) != (tt.want == nil) || err != nil && !errors.Is(tt.want, err) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}

// TestImageWithoutPreflight is what lies at the path when it is executed.
func TestImageWithoutPreflight(t *testing.T) {
	i := &image{path: "/nowhere"}
	must(t, i.unchanged())
	files := []*os.File{os.Stdin}
	if path, all := i.inherited(files); path != i.path || len(all) != 1 {
		t.Errorf("%s with %d descriptors", path, len(all))
	}
	must(t, i.Close())
}

// TestLentImage is the file that was opened, whatever becomes of it, until the
// borrower is done.
func TestLentImage(t *testing.T) {
	if !byDescriptor {
		t.Skip("a check gets the path on this system")
	}
	before := openFDs(t)
	i := openedImage(t)
	path, done, err := i.lend()
	must(t, err)
	want, err := os.ReadFile(i.path)
	must(t, err)
	must(t, i.Close()) // the attempt was given up
	must(t, os.Remove(i.path))
	for range 2 { // each has an offset of its own
		got, err := os.ReadFile(path)
		must(t, err)
		if string(got) != string(want) {
			t.Error("it is another file")
		}
	}
	done()
	if _, err := os.Stat(path); err == nil {
		t.Errorf("%s is still there", path)
	}
	wantNoMoreFDs(t, before)
}
