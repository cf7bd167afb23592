//go:build unix

package upgrader

import (
	"os"
	"syscall"
)

var (
	defaultUpgradeSignals = []os.Signal{syscall.SIGUSR1}
	defaultStopSignals    = []os.Signal{syscall.SIGINT, syscall.SIGTERM}
)
