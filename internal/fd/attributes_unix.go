//go:build unix

package fd

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// AttributesOf returns the attributes of an open file.
func AttributesOf(f syscall.Conn) (Attributes, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return Attributes{}, err
	}
	var st unix.Stat_t
	var statErr error
	err = rc.Control(func(fd uintptr) { statErr = unix.Fstat(int(fd), &st) })
	if err := errors.Join(err, statErr); err != nil {
		return Attributes{}, os.NewSyscallError("fstat", err)
	}
	return Attributes{
		Dev: uint64(st.Dev), Ino: uint64(st.Ino), Mode: uint32(st.Mode), UID: st.Uid, GID: st.Gid, //nolint:unconvert,nolintlint // other widths on other systems
		Size: st.Size, Modified: unix.TimespecToNsec(st.Mtim), Changed: unix.TimespecToNsec(st.Ctim),
	}, nil
}
