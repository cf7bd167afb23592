package fd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BecomeSubreaper makes orphaned descendants children of this process
// (PR_SET_CHILD_SUBREAPER, prctl(2)).
func BecomeSubreaper() error {
	return os.NewSyscallError("prctl PR_SET_CHILD_SUBREAPER", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// Zombie returns a child that has ended, and leaves it for Reap. It returns 0
// if none has, and unix.ECHILD if there are no children.
func Zombie() (pid int, err error) {
	var info unix.Siginfo
	for {
		err = unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return 0, os.NewSyscallError("waitid", err)
	}
	// The union that begins with si_pid is aligned as a pointer is.
	return int((*struct {
		_   [3]int32
		_   [0]uintptr
		pid int32
	})(unsafe.Pointer(&info)).pid), nil
}

// Reap waits for the child pid and returns how it ended.
func Reap(pid int) (syscall.WaitStatus, error) {
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if !errors.Is(err, unix.EINTR) {
			return status, os.NewSyscallError("wait4", err)
		}
	}
}

// SameDescription says whether two descriptors of this process are of one open
// file description. Where kcmp(2) is forbidden, one inode counts as one
// description, which is true for sockets.
func SameDescription(a, b int) bool {
	self := uintptr(os.Getpid())
	const kcmpFile = 0
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, self, self, kcmpFile, uintptr(a), uintptr(b), 0)
	if errno == 0 {
		return order == 0
	}
	var x, y unix.Stat_t
	return unix.Fstat(a, &x) == nil && unix.Fstat(b, &y) == nil && x.Dev == y.Dev && x.Ino == y.Ino
}

// SetCloseOnExec keeps descriptor n, which must have been inherited, from
// subprocesses.
func SetCloseOnExec(n int) error {
	flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0)
	if err == nil && flags&unix.FD_CLOEXEC != 0 {
		return errors.New("it was not inherited, but is this program's own")
	}
	_, err = unix.FcntlInt(uintptr(n), unix.F_SETFD, unix.FD_CLOEXEC)
	return os.NewSyscallError("fcntl F_SETFD", err)
}

// NotifySocket is the one that sd_notify(3) writes to.
type NotifySocket struct {
	conn *net.UnixConn
	raw  syscall.RawConn
}

// Message is one datagram.
type Message struct {
	PID  int // of the sender, as the kernel tells it; 0 if it is in no namespace of ours
	Text string
	FDs  []int // close-on-exec; the reader closes them
}

// ListenNotify opens a socket with an abstract name that the kernel chooses.
func ListenNotify() (*NotifySocket, error) {
	n, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(n), "notify socket")
	defer f.Close() // FilePacketConn works on a duplicate
	// Credentials first: what is sent before they are asked for has none.
	if err := unix.SetsockoptInt(n, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		return nil, os.NewSyscallError("setsockopt SO_PASSCRED", err)
	}
	if err := unix.Bind(n, &unix.SockaddrUnix{}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the notify socket is a %T", c), c.Close())
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &NotifySocket{conn, raw}, nil
}

// Name is the value of NOTIFY_SOCKET.
func (s *NotifySocket) Name() string { return s.conn.LocalAddr().String() }

// Close ends Wait, too.
func (s *NotifySocket) Close() error { return s.conn.Close() }

// Wait waits for a message, and leaves it for Read.
func (s *NotifySocket) Wait() error {
	var failed error
	err := s.raw.Read(func(n uintptr) bool {
		_, _, err := unix.Recvfrom(int(n), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if again(err) {
			return false
		}
		failed = err
		return true
	})
	return errors.Join(err, os.NewSyscallError("recvfrom", failed))
}

func again(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) }

// The most that a message may have, else it is read as empty: the kernel sends no more descriptors at
// once (SCM_MAX_FD, unix(7)).
const (
	maxText = 4096 // as systemd has it
	maxFDs  = 253
)

// Read returns the next message, and false if there is none. It does not wait.
func (s *NotifySocket) Read() (m Message, ok bool, err error) {
	text := make([]byte, maxText)
	rights := make([]byte, unix.CmsgSpace(4*maxFDs)+unix.CmsgSpace(unix.SizeofUcred))
	var n, rn, flags int
	var failed error
	err = s.raw.Control(func(d uintptr) { // Read would wait for Wait
		for {
			n, rn, flags, _, failed = unix.Recvmsg(int(d), text, rights, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			if !errors.Is(failed, unix.EINTR) {
				return
			}
		}
	})
	if errors.Is(failed, unix.EAGAIN) {
		return Message{}, false, nil
	}
	if err := errors.Join(err, os.NewSyscallError("recvmsg", failed)); err != nil {
		return Message{}, false, err
	}
	if flags&unix.MSG_TRUNC == 0 { // half of it could say something else
		m.Text = string(text[:n])
	}
	return m, true, m.control(rights[:rn])
}

// control takes what came beside the text.
func (m *Message) control(b []byte) error {
	messages, err := unix.ParseSocketControlMessage(b)
	if err != nil {
		return err
	}
	for _, c := range messages {
		if fds, err := unix.ParseUnixRights(&c); err == nil {
			m.FDs = append(m.FDs, fds...)
		}
		if cred, err := unix.ParseUnixCredentials(&c); err == nil {
			m.PID = int(cred.Pid)
		}
	}
	return nil
}

// ForgetImage lets go of the pages of this program's text and constants. The
// kernel reads those that are needed again from the file; what only the start
// of the process needed is then no memory of it.
func ForgetImage() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
			return err
		}
		// What can be written to may have been.
		if !strings.HasSuffix(strings.TrimSpace(line), exe) || strings.Contains(mode, "w") {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
			return os.NewSyscallError("madvise", errno)
		}
	}
	return nil
}
