package fd

import (
	"errors"
	"os"
	"sync"
	"syscall"

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

// WaitProcess blocks until the process of a pidfd has ended. It may not have
// been reaped.
func WaitProcess(pidfd *os.File) error {
	rc, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var pollErr error
	err = rc.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			if _, pollErr = unix.Poll(fds, -1); !errors.Is(pollErr, unix.EINTR) {
				return
			}
		}
	})
	return errors.Join(err, os.NewSyscallError("poll", pollErr))
}
