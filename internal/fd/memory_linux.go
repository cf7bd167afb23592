package fd

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// seals make the bytes of a file in memory final, for everybody who has it.
const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL

// NewMemory returns a file in memory without a name, close-on-exec, which the
// caller closes. It can be sealed.
func NewMemory(name string) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	// A system may insist that it cannot be executed (vm.memfd_noexec); before
	// Linux 6.3 that cannot be said.
	n, err := unix.MemfdCreate(name, flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		n, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(n), name), nil
}

// Seal makes what was written to f final: nobody can change it any more.
func Seal(f syscall.Conn) error {
	err := control(f, func(n int) error {
		_, err := unix.FcntlInt(uintptr(n), unix.F_ADD_SEALS, seals)
		return err
	})
	return os.NewSyscallError("fcntl F_ADD_SEALS", err)
}

// Sealed returns the size of a file in memory, or an error if f is none, or if
// somebody could still change it: what is mapped of it would change, too, or
// end in SIGBUS.
func Sealed(f syscall.Conn) (size int64, err error) {
	size, err = sizeOf(f)
	if err != nil {
		return 0, err
	}
	has := 0
	err = control(f, func(n int) error {
		var err error
		has, err = unix.FcntlInt(uintptr(n), unix.F_GET_SEALS, 0)
		return err
	})
	switch {
	case err != nil:
		return 0, fmt.Errorf("it is no file in memory: %w", os.NewSyscallError("fcntl F_GET_SEALS", err))
	case has&seals != seals:
		return 0, fmt.Errorf("it is not sealed: seals %#x, want %#x", has, seals)
	}
	return size, nil
}
