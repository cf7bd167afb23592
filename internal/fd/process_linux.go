package fd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Started returns how a process is to be started whose pidfd is wanted: it is
// written to *pidfd, close-on-exec and the caller's, -1 if the kernel has none
// (before 5.4). With sibling it becomes a child of this process's parent
// (CLONE_PARENT of clone(2)): os.Process.Wait fails with ECHILD.
func Started(pidfd *int, sibling bool) *syscall.SysProcAttr {
	*pidfd = -1
	attr := &syscall.SysProcAttr{PidFD: pidfd}
	if sibling {
		attr.Cloneflags = unix.CLONE_PARENT
	}
	return attr
}

// CanPollProcesses reports that this kernel has pidfds, with which the end of
// a process that is no child can be waited for (Linux 5.4).
var CanPollProcesses = sync.OnceValue(func() bool {
	n, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return false
	}
	_ = unix.Close(n)
	return true
})

// OpenProcess returns a pidfd.
func OpenProcess(pid int) (*os.File, error) {
	n, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return os.NewFile(uintptr(n), "pidfd"), nil
}

// WaitProcess blocks until the process of a pidfd has ended. It may not have
// been reaped.
func WaitProcess(pidfd *os.File) error {
	_, err := poll(pidfd, unix.POLLIN, -1)
	return err
}

// AwaitEnd is WaitProcess for a pidfd of PeerProcess: no thread waits meanwhile,
// and to close the file ends the wait, with an error.
func AwaitEnd(pidfd *os.File) error {
	if errors.Is(pidfd.SetReadDeadline(time.Time{}), os.ErrNoDeadline) {
		return WaitProcess(pidfd) // the poller has not taken it
	}
	rc, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var pollErr error
	err = rc.Read(func(fd uintptr) bool {
		var ready bool
		ready, pollErr = pollNumber(fd, unix.POLLIN, 0)
		return ready || pollErr != nil
	})
	return errors.Join(err, pollErr)
}

// HasEnded reports that the process pid, of a pidfd, has. A pidfd that is closed is
// one whose owner has waited for that. A process of several threads shows as a
// zombie in /proc before its pidfd tells: who looks there takes it for dead.
func HasEnded(pid int, pidfd *os.File) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// The name, in parentheses, may have anything in it.
	if name := bytes.LastIndexByte(stat, ')'); err == nil && bytes.HasPrefix(stat[name+1:], []byte(" Z ")) {
		return true
	}
	ready, err := poll(pidfd, unix.POLLIN, 0)
	return ready || err != nil
}

// HungUp waits until nobody has the writing end of a pipe any more, limit at most,
// and reports that.
func HungUp(r *os.File, limit time.Duration) bool {
	ready, err := poll(r, 0, limit) // the end is never masked
	return ready && err == nil
}

// poll waits for an event on f, for ever if limit is negative.
func poll(f *os.File, events int16, limit time.Duration) (ready bool, err error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var pollErr error
	err = rc.Control(func(fd uintptr) { ready, pollErr = pollNumber(fd, events, limit) })
	return ready, errors.Join(err, pollErr)
}

func pollNumber(fd uintptr, events int16, limit time.Duration) (ready bool, err error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	until := time.Now().Add(limit)
	for {
		left := -1
		if limit >= 0 {
			left = int(max(time.Until(until), 0).Milliseconds())
		}
		n, err := unix.Poll(fds, left)
		if !errors.Is(err, unix.EINTR) {
			return n > 0, os.NewSyscallError("poll", err)
		}
	}
}
