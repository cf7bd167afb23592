//go:build !unix

package fd

import (
	"errors"
	"net"
	"os"
	"syscall"
)

// Dup returns errors.ErrUnsupported.
func Dup(syscall.Conn, string) (*os.File, error) { return nil, errors.ErrUnsupported }

// Inherit returns errors.ErrUnsupported.
func Inherit(int, string) (*os.File, error) { return nil, errors.ErrUnsupported }

// Pair returns errors.ErrUnsupported.
func Pair() (*net.UnixConn, *os.File, error) { return nil, nil, errors.ErrUnsupported }

// OpenChannel returns errors.ErrUnsupported.
func OpenChannel(int) (*net.UnixConn, error) { return nil, errors.ErrUnsupported }

// Channel returns errors.ErrUnsupported.
func Channel(*os.File) (*net.UnixConn, error) { return nil, errors.ErrUnsupported }

// Kind returns errors.ErrUnsupported.
func Kind(syscall.Conn) (string, error) { return "", errors.ErrUnsupported }

// Limit returns 0: there is no such limit here.
func Limit() uint64 { return 0 }

// Owner returns false: files have no uid here.
func Owner(os.FileInfo) (uid int, known bool) { return 0, false }

// Identity returns zeros: files have no inode number here.
func Identity(os.FileInfo) (dev, ino uint64) { return 0, 0 }

// AttributesOf returns errors.ErrUnsupported.
func AttributesOf(syscall.Conn) (Attributes, error) { return Attributes{}, errors.ErrUnsupported }

// NewMemory returns errors.ErrUnsupported.
func NewMemory(string) (*os.File, error) { return nil, errors.ErrUnsupported }

// Seal returns errors.ErrUnsupported.
func Seal(syscall.Conn) error { return errors.ErrUnsupported }

// Sealed returns errors.ErrUnsupported.
func Sealed(syscall.Conn) (size int64, err error) { return 0, errors.ErrUnsupported }

// Map returns errors.ErrUnsupported.
func Map(syscall.Conn, int64) ([]byte, error) { return nil, errors.ErrUnsupported }

// Unmap returns errors.ErrUnsupported.
func Unmap([]byte) error { return errors.ErrUnsupported }
