package fd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// PeerProcess returns a pidfd of the process that connected c, the caller's, or
// nil if this kernel cannot tell: SO_PEERPIDFD (Linux 6.5) or, if that process
// has a pid in this pid namespace, pidfd_open(2) (5.3). AwaitEnd waits for it.
func PeerProcess(c *net.UnixConn) *os.File {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	n, sockErr := -1, error(nil)
	err = rc.Control(func(fd uintptr) { n, sockErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD) })
	if err != nil || sockErr != nil { // what there is now may be another process of that pid
		pid, err := PeerPID(c)
		if err != nil || pid <= 0 {
			return nil
		}
		if n, err = unix.PidfdOpen(pid, 0); err != nil {
			return nil
		}
	}
	_ = unix.SetNonblock(n, true)          // so that os.NewFile gives it to the poller: it does not fail
	return os.NewFile(uintptr(n), "pidfd") // close-on-exec, as all pidfds are
}

// ThisProcess returns a pidfd of this process, the caller's, nil if the kernel
// has none.
func ThisProcess() *os.File { return openProcess(os.Getpid()) }

func openProcess(pid int) *os.File {
	n, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(n), "pidfd")
}

// SignalProcess sends a signal to the process of a pidfd, if that is in this
// pid namespace or one below it.
func SignalProcess(pidfd *os.File, sig syscall.Signal) error {
	rc, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = rc.Control(func(fd uintptr) { sendErr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	return errors.Join(err, os.NewSyscallError("pidfd_send_signal", sendErr))
}

// NewTurn returns a lock that is held by whoever has a duplicate of it, in any
// process, and has no name in any file system.
func NewTurn() (*os.File, error) {
	n, err := unix.MemfdCreate("upgrader turn", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(n), "turn")
	locked, err := TryLock(f)
	if err == nil && !locked {
		err = errors.New("a new file is locked")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// WaitingFor returns another opening of the same lock, which does not hold it.
func WaitingFor(turn *os.File) (*os.File, error) {
	rc, err := turn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var f *os.File
	var openErr error
	err = rc.Control(func(fd uintptr) {
		f, openErr = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDWR, 0)
	})
	return f, errors.Join(err, openErr)
}

// Await blocks until turn holds its lock: nobody else does any more. Closing it
// meanwhile ends nothing, it takes effect then.
func Await(turn *os.File) error {
	rc, err := turn.SyscallConn()
	if err != nil {
		return err
	}
	var lockErr error
	err = rc.Control(func(fd uintptr) { lockErr = flock(int(fd), unix.LOCK_EX) })
	return errors.Join(err, os.NewSyscallError("flock", lockErr))
}
