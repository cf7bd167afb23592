//go:build unix

package upgradertest

import "syscall"

const upgradeSignal = syscall.SIGUSR1

// supported reports that a process can hand its sockets to another one.
const supported = true
