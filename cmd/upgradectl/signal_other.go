//go:build !unix

package main

import "syscall"

// upgradeSignal is 0: none exists, and no server can replace itself.
const upgradeSignal = syscall.Signal(0)
