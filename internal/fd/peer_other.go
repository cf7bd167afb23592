//go:build !linux

package fd

import (
	"net"
	"os"
)

// PeerPID returns the parent: where only fork and exec join two processes, it
// is the one that made the pair. Linux asks the socket instead.
func PeerPID(*net.UnixConn) (int, error) { return os.Getppid(), nil }

// PeerUID returns the uid of this process: the mode of the socket's path keeps
// others away. Linux asks the socket instead.
func PeerUID(*net.UnixConn) (int, error) { return os.Geteuid(), nil }
