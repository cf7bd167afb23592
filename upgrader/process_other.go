//go:build !unix

package upgrader

import "os"

const supported = false

var askGoroutines = os.Kill
