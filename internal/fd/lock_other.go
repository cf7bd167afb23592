//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package fd

import (
	"errors"
	"os"
)

// CanLock says that this system has no flock(2).
const CanLock = false

// OpenNoFollow returns errors.ErrUnsupported.
func OpenNoFollow(string) (*os.File, error) { return nil, errors.ErrUnsupported }

// TryLock returns errors.ErrUnsupported.
func TryLock(*os.File) (bool, error) { return false, errors.ErrUnsupported }

// Locked returns errors.ErrUnsupported.
func Locked(*os.File) (bool, error) { return false, errors.ErrUnsupported }
