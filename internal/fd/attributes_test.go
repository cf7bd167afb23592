//go:build unix

package fd

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestAttributes: each of them is seen, and reading changes none.
func TestAttributes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte("text"), 0o600))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	look := func() Attributes {
		a, err := AttributesOf(f)
		must(t, err)
		return a
	}
	was := look()
	fi, err := f.Stat()
	must(t, err)
	dev, ino := Identity(fi)
	if was.Dev != dev || was.Ino != ino || was.Size != 4 || was.Modified != fi.ModTime().UnixNano() || was.Changed < was.Modified {
		t.Errorf("%+v, want those of %+v", was, fi.Sys())
	}
	if int(was.UID) != os.Geteuid() {
		t.Errorf("uid %d, want %d", was.UID, os.Geteuid())
	}
	_, err = os.ReadFile(path)
	must(t, err)
	if now := look(); now != was {
		t.Errorf("read: %+v, want %+v", now, was)
	}
	must(t, os.Chtimes(path, time.Time{}, time.Unix(1, 2)))
	if now := look(); now.Modified != 1e9+2 || now.Changed < was.Changed {
		t.Errorf("its time was set: %+v", now)
	}
	must(t, os.Chmod(path, 0o640))
	if now := look(); now.Mode&0o777 != 0o640 {
		t.Errorf("mode %o", now.Mode)
	}
	must(t, os.Truncate(path, 2))
	if now := look(); now.Size != 2 {
		t.Errorf("size %d", now.Size)
	}
	must(t, f.Close())
	if _, err := AttributesOf(f); err == nil {
		t.Error("a closed file has attributes")
	}
}
