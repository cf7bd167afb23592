//go:build !go1.27

package httpgrace

import "net/http"

func passOn(_, _ *http.Server) {}
