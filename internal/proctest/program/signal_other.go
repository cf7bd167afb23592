//go:build !unix

package program

import (
	"errors"
	"syscall"
)

// Signal returns errors.ErrUnsupported: upgrades need Unix.
func Signal(int, syscall.Signal) error { return errors.ErrUnsupported }

// Ask does nothing.
func Ask(int) {}

func alive(int) bool { return false }
