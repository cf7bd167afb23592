//go:build !linux

package fd

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// Notify returns errors.ErrUnsupported.
func Notify(string, string, ...int) error { return errors.ErrUnsupported }

// Monotonic returns 0: nobody asks for it here.
func Monotonic() time.Duration { return 0 }

// Started asks for nothing special: there are no pidfds and no siblings here.
func Started(pidfd *int, _ bool) *syscall.SysProcAttr {
	*pidfd = -1
	return nil
}

// CanPollProcesses is false: there are no pidfds here.
func CanPollProcesses() bool { return false }

// AwaitEnd returns errors.ErrUnsupported.
func AwaitEnd(*os.File) error { return errors.ErrUnsupported }

// WaitProcess returns errors.ErrUnsupported.
func WaitProcess(*os.File) error { return errors.ErrUnsupported }

// HasEnded is false: there are no pidfds here.
func HasEnded(int, *os.File) bool { return false }

// HungUp is false: there is no service manager to wait for here.
func HungUp(*os.File, time.Duration) bool { return false }

// OpenProcess returns errors.ErrUnsupported.
func OpenProcess(int) (*os.File, error) { return nil, errors.ErrUnsupported }
