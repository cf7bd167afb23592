//go:build unix

package fd

import (
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Map returns the size bytes of a file that is sealed, without a copy. They
// cannot be written to. The caller gives them to Unmap; f may be closed before.
func Map(f syscall.Conn, size int64) ([]byte, error) {
	if size == 0 {
		return nil, nil // there is no empty mapping
	}
	if size > math.MaxInt {
		return nil, fmt.Errorf("%d bytes are more than this process can address", size)
	}
	var b []byte
	err := control(f, func(n int) error {
		var err error
		// A shared mapping could become writable one day, which kernels before 6.7
		// refuse for a sealed file. Nobody writes, so the pages are the same.
		b, err = unix.Mmap(n, 0, int(size), unix.PROT_READ, unix.MAP_PRIVATE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%d bytes: %w", size, os.NewSyscallError("mmap", err))
	}
	return b, nil
}

// Unmap ends what Map has begun: to read b afterwards is a fault.
func Unmap(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	return os.NewSyscallError("munmap", unix.Munmap(b))
}

// control calls do with the descriptor of f.
func control(f syscall.Conn, do func(n int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var doErr error
	err = rc.Control(func(n uintptr) { doErr = do(int(n)) })
	return errors.Join(err, doErr)
}

// sizeOf returns the size of f, which must be a regular file.
func sizeOf(f syscall.Conn) (int64, error) {
	at, err := AttributesOf(f)
	if err != nil {
		return 0, err
	}
	if at.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, errors.New("it is no regular file")
	}
	return at.Size, nil
}
