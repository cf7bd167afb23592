//go:build unix

package upgrader

import "syscall"

// supported: this system hands descriptors to a process that is executed.
const supported = true

// askGoroutines makes a Go process print its goroutines and die.
const askGoroutines = syscall.SIGQUIT
