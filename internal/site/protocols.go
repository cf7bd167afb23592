package site

import "net/http"

// Protocols are all that net/http speaks, on one listener: HTTP/1, and HTTP/2
// both over TLS and in the clear, for clients that begin with it.
func Protocols() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	return p
}
