//go:build unix

package wire

import (
	"errors"
	"os"
	"syscall"
)

// There is room for all that can come, so that a peer which sends too many is
// told from a process at its limit.
var controlSpace = syscall.CmsgSpace(4 * MaxRights)

func encodeRights(fds []int) ([]byte, error) {
	if len(fds) == 0 {
		return nil, nil
	}
	return syscall.UnixRights(fds...), nil
}

// decodeRights returns the descriptors in the control data of one read, and
// whether the kernel had to drop any. The caller owns them, also with an error.
func decodeRights(control []byte, flags int) (files []*os.File, lost bool, err error) {
	lost = flags&syscall.MSG_CTRUNC != 0
	messages, err := syscall.ParseSocketControlMessage(control)
	if lost {
		err = nil // what was cut off need not parse
	}
	for _, m := range messages {
		fds, parseErr := syscall.ParseUnixRights(&m)
		err = errors.Join(err, parseErr)
		for _, n := range fds {
			files = append(files, os.NewFile(uintptr(n), "handed over"))
		}
	}
	return files, lost, err
}
