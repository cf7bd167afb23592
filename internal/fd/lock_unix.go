//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package fd

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// CanLock says that this system has flock(2).
const CanLock = true

// OpenNoFollow opens a file for reading. It fails with ELOOP if path is a
// symbolic link; one in its directory is followed.
func OpenNoFollow(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
}

// TryLock locks f with flock(2), exclusively, and reports whether it could.
// The lock belongs to the open file description: duplicates of f in any
// process hold it too, and it ends when the last of them is closed. Another
// open of the same file conflicts, in this process as well.
func TryLock(f *os.File) (bool, error) { return tryFlock(f, unix.LOCK_EX) }

// Locked reports whether somebody else holds the lock on f. It asks by taking
// a shared lock for an instant, so two who ask at once do not see each other.
func Locked(f *os.File) (bool, error) {
	ok, err := tryFlock(f, unix.LOCK_SH)
	if err != nil || !ok {
		return !ok, err
	}
	_, err = tryFlock(f, unix.LOCK_UN)
	return false, err
}

func tryFlock(f *os.File, how int) (bool, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var lockErr error
	if err := rc.Control(func(fd uintptr) { lockErr = flock(int(fd), how|unix.LOCK_NB) }); err != nil {
		return false, err
	}
	switch {
	case lockErr == nil:
		return true, nil
	case errors.Is(lockErr, unix.EWOULDBLOCK):
		return false, nil
	default:
		return false, &os.PathError{Op: "flock", Path: f.Name(), Err: lockErr}
	}
}

// flock repeats what a signal interrupted, which some network file systems
// allow even where nothing waits.
func flock(n, how int) error {
	for {
		if err := unix.Flock(n, how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
