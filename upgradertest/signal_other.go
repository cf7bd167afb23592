//go:build !unix

package upgradertest

import "syscall"

// upgradeSignal does not exist: Start skips the test.
const upgradeSignal = syscall.Signal(0)

// supported reports that a process can hand its sockets to another one.
const supported = false
