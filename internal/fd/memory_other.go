//go:build unix && !linux

package fd

import (
	"errors"
	"os"
	"syscall"
)

// NewMemory returns a file without a name, close-on-exec, which the caller
// closes.
func NewMemory(name string) (*os.File, error) {
	f, err := os.CreateTemp("", name)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Seal does nothing: there are no seals here.
func Seal(syscall.Conn) error { return nil }

// Sealed returns the size of f, or an error if it is no regular file.
func Sealed(f syscall.Conn) (size int64, err error) { return sizeOf(f) }
