//go:build !linux

package fd

import (
	"errors"
	"net"
	"os"
	"syscall"
)

// PeerProcess returns nil: there are no pidfds here.
func PeerProcess(*net.UnixConn) *os.File { return nil }

// ThisProcess returns nil: there are no pidfds here.
func ThisProcess() *os.File { return nil }

// SignalProcess returns errors.ErrUnsupported.
func SignalProcess(*os.File, syscall.Signal) error { return errors.ErrUnsupported }

// NewTurn returns errors.ErrUnsupported.
func NewTurn() (*os.File, error) { return nil, errors.ErrUnsupported }

// WaitingFor returns errors.ErrUnsupported.
func WaitingFor(*os.File) (*os.File, error) { return nil, errors.ErrUnsupported }

// Await returns errors.ErrUnsupported.
func Await(*os.File) error { return errors.ErrUnsupported }
