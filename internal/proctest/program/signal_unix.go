//go:build unix

package program

import "syscall"

// Signal sends sig to a process, whoever is its parent.
func Signal(pid int, sig syscall.Signal) error { return syscall.Kill(pid, sig) }

// Ask asks a process to end, for which it must not be stopped.
func Ask(pid int) {
	_ = Signal(pid, syscall.SIGTERM) // it may just have ended
	_ = Signal(pid, syscall.SIGCONT)
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }
