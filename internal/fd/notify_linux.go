package fd

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// notifyTimeout bounds the wait for room in the queue of a datagram socket.
const notifyTimeout = 5 * time.Second

// Notify sends one datagram to the unix socket at address, a path or, behind an
// @, an abstract name, with descriptors. It waits for room in its queue, 5 s at
// most. Package net cannot send descriptors over a datagram socket that it has
// connected.
func Notify(address, text string, rights ...int) error {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	limit := unix.NsecToTimeval(notifyTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return os.NewSyscallError("setsockopt SO_SNDTIMEO", err)
	}
	var oob []byte
	if len(rights) > 0 {
		oob = unix.UnixRights(rights...)
	}
	for {
		err := unix.Sendmsg(s, []byte(text), oob, &unix.SockaddrUnix{Name: address}, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

// Monotonic returns CLOCK_MONOTONIC.
func Monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
