//go:build !unix

package upgrader

import "os"

const supported = false

var askGoroutines = os.Kill

// endedBy returns false: there are no such signals here.
func endedBy(*os.ProcessState) (os.Signal, bool) { return nil, false }
