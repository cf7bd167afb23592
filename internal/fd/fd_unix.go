//go:build unix

package fd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Dup duplicates the descriptor behind c. The duplicate is close-on-exec and
// belongs to the caller. It goes through SyscallConn because File and Fd clear
// O_NONBLOCK on the description that both processes share.
func Dup(c syscall.Conn, name string) (*os.File, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	n, dupErr := -1, error(nil)
	err = rc.Control(func(fd uintptr) {
		n, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3)
	})
	if err := errors.Join(err, dupErr); err != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	return os.NewFile(uintptr(n), name), nil
}

// Inherit makes descriptor n, which an exec left open in this process, its
// own: close-on-exec, so that no subprocess sees it, and O_NONBLOCK if it is
// a socket, because the runtime's poller needs it and another process may have
// cleared it. It refuses standard input, output and error.
func Inherit(n int, name string) (*os.File, error) {
	if n < 3 {
		return nil, fmt.Errorf("descriptor %d is standard input, output or error", n)
	}
	var st unix.Stat_t
	if err := unix.Fstat(n, &st); err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", n, err)
	}
	unix.CloseOnExec(n)
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		if err := unix.SetNonblock(n, true); err != nil {
			return nil, fmt.Errorf("descriptor %d: O_NONBLOCK: %w", n, err)
		}
	}
	return os.NewFile(uintptr(n), name), nil
}

// Pair returns the two ends of a connected unix stream socket, both
// close-on-exec. The caller closes both; remote is for the process that is
// started next.
func Pair() (local *net.UnixConn, remote *os.File, err error) {
	syscall.ForkLock.RLock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	remote = os.NewFile(uintptr(fds[1]), "handover channel")
	local, err = Channel(os.NewFile(uintptr(fds[0]), "handover channel"))
	if err != nil {
		return nil, nil, errors.Join(err, remote.Close())
	}
	return local, remote, nil
}

// OpenChannel returns a connection over a duplicate of descriptor n, which an
// exec may have left open in this process. n must be a connected unix stream
// socket; if it is not, or not the one that was meant, it is somebody else's,
// perhaps the runtime's own, and so it is not touched.
func OpenChannel(n int) (*net.UnixConn, error) {
	sa, err := unix.Getsockname(n)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", n, os.NewSyscallError("getsockname", err))
	}
	if _, ok := sa.(*unix.SockaddrUnix); !ok || kindOf(n) != "stream" {
		return nil, fmt.Errorf("descriptor %d is not a unix stream socket", n)
	}
	dup, err := unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	return Channel(os.NewFile(uintptr(dup), "handover channel"))
}

// Channel turns f, which it closes, into a connection. f must be a connected
// unix stream socket.
func Channel(f *os.File) (*net.UnixConn, error) {
	defer f.Close() // FileConn works on a duplicate
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok || uc.LocalAddr().Network() != "unix" {
		return nil, errors.Join(fmt.Errorf("%s is a %T, not a unix stream socket", f.Name(), c), c.Close())
	}
	return uc, nil
}

// Kind says what f is: "listener" for a socket that listens, "packet" for a
// datagram socket, "stream" for any other socket, "file" for the rest.
func Kind(f syscall.Conn) (string, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return "", err
	}
	kind := ""
	err = rc.Control(func(fd uintptr) { kind = kindOf(int(fd)) })
	return kind, err
}

func kindOf(n int) string {
	typ, err := unix.GetsockoptInt(n, unix.SOL_SOCKET, unix.SO_TYPE)
	switch {
	case err != nil:
		return "file"
	case typ == unix.SOCK_DGRAM:
		return "packet"
	}
	if on, err := unix.GetsockoptInt(n, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && on != 0 {
		return "listener"
	}
	return "stream"
}

// Limit returns RLIMIT_NOFILE's soft limit, 0 if it cannot be read.
func Limit() uint64 {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0
	}
	return uint64(lim.Cur) //nolint:unconvert,nolintlint // signed on some BSDs
}

// Identity returns the device and inode number of the file that fi describes.
func Identity(fi os.FileInfo) (dev, ino uint64) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0
	}
	return uint64(st.Dev), uint64(st.Ino) //nolint:unconvert,nolintlint // other widths on other systems
}

// Owner returns the uid of the file's owner, if it is known.
func Owner(fi os.FileInfo) (uid int, known bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(st.Uid), true
}
