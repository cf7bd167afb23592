//go:build !unix

package httpgrace

import "net"

// peek reports whether something waits in the socket of nc, if that can be known.
func peek(net.Conn) (some, known bool) { return false, false }
