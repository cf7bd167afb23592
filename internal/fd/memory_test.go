//go:build unix

package fd

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// written returns a file in memory with this content.
func written(t *testing.T, content string) *os.File {
	t.Helper()
	f, err := NewMemory("state")
	must(t, err)
	t.Cleanup(func() { f.Close() })
	_, err = f.WriteString(content)
	must(t, err)
	return f
}

// TestMemoryIsMappedAsItWasWritten, as often as it is, and after it was closed.
func TestMemoryIsMappedAsItWasWritten(t *testing.T) {
	for _, content := range []string{"", "x", strings.Repeat("page", 3000)} {
		f := written(t, content)
		must(t, Seal(f))
		size, err := Sealed(f)
		if err != nil || size != int64(len(content)) {
			t.Errorf("%d bytes, %v; want %d", size, err, len(content))
		}
		one, err := Map(f, size)
		must(t, err)
		two, err := Map(f, size)
		must(t, err)
		must(t, f.Close())
		if string(one) != content || string(two) != content {
			t.Errorf("mapped %.20q and %.20q, want %.20q", one, two, content)
		}
		must(t, Unmap(one))
		if string(two) != content {
			t.Error("one mapping has ended with the other")
		}
		must(t, Unmap(two))
	}
}

func TestMapOfNothing(t *testing.T) {
	f := written(t, "text")
	must(t, f.Close())
	if b, err := Map(f, 4); err == nil {
		t.Errorf("a closed file is mapped: %q", b)
	}
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	if b, err := Map(r, 4); err == nil {
		t.Errorf("a pipe is mapped: %q", b)
	}
	if _, err := Sealed(r); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("a pipe: %v", err)
	}
}

// TestSealedMemoryCannotBeChanged, by whoever has the descriptor.
func TestSealedMemoryCannotBeChanged(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there are no seals")
	}
	f := written(t, "text")
	if _, err := Sealed(f); err == nil || !strings.Contains(err.Error(), "it is not sealed") {
		t.Errorf("not sealed yet: %v", err)
	}
	must(t, Seal(f))
	for what, change := range map[string]func() error{
		"written":  func() error { _, err := f.WriteAt([]byte("x"), 0); return err },
		"longer":   func() error { return f.Truncate(5) },
		"shorter":  func() error { return f.Truncate(3) },
		"unsealed": func() error { return Seal(f) },
		"mapped to write": func() error {
			return control(f, func(n int) error {
				b, err := unix.Mmap(n, 0, 4, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
				if err == nil {
					err = unix.Munmap(b)
				}
				return err
			})
		},
	} {
		if err := change(); err == nil {
			t.Errorf("it could be %s", what)
		}
	}
	if !isCloseOnExec(t, number(t, f)) {
		t.Error("it is not close-on-exec")
	}
	named, err := os.Open(os.Args[0])
	must(t, err)
	defer named.Close()
	if _, err := Sealed(named); err == nil || !strings.Contains(err.Error(), "no file in memory") {
		t.Errorf("a file with a name: %v", err)
	}
}
