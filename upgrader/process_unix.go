//go:build unix

package upgrader

import (
	"os"
	"syscall"
)

// supported: this system hands descriptors to a process that is executed.
const supported = true

// askGoroutines makes a Go process print its goroutines and die.
const askGoroutines = syscall.SIGQUIT

// endedBy returns the signal that has ended a process, if it was one.
func endedBy(state *os.ProcessState) (os.Signal, bool) {
	ws, ok := state.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() {
		return nil, false
	}
	return ws.Signal(), true
}
