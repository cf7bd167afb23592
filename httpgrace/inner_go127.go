//go:build go1.27

package httpgrace

import "net/http"

// passOn copies the fields that Go 1.27 brought.
func passOn(from, to *http.Server) {
	to.MaxHeaderValueCount = from.MaxHeaderValueCount
	to.DisableClientPriority = from.DisableClientPriority
}
