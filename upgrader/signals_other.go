//go:build !unix

package upgrader

import (
	"os"
	"syscall"
)

var (
	defaultUpgradeSignals []os.Signal // none exists
	defaultStopSignals    = []os.Signal{os.Interrupt, syscall.SIGTERM}
)
