//go:build !linux

package supervise

import (
	"errors"
	"fmt"
)

// Run returns errors.ErrUnsupported.
func Run(Config) (int, error) {
	return codeCannotRun, fmt.Errorf("supervise needs Linux: %w", errors.ErrUnsupported)
}

// Trampoline does nothing.
func Trampoline() {}

// AdoptListenPID does nothing.
func AdoptListenPID() {}
