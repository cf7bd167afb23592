//go:build unix

package httpgrace

import (
	"net"
	"syscall"
)

// peek reports whether something waits in the socket of nc, if that can be known.
func peek(nc net.Conn) (some, known bool) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return false, false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false, false
	}
	err = rc.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		some = err != syscall.EAGAIN // also the end of the stream, or an error: Read will tell
		known = err != syscall.EINTR
	})
	return some, known && err == nil
}
