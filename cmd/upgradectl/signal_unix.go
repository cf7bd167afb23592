//go:build unix

package main

import "syscall"

// upgradeSignal is upgrader's.
const upgradeSignal = syscall.SIGUSR1
