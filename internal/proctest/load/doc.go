// Package load puts clients on a server and counts what they lose. The kinds of
// client speak HTTP/1, HTTP/2, WebSockets and server-sent events, over TLS or
// in the clear.
//
// The clients never retry. They write their requests by hand, because
// net/http's Transport sends a request again when a kept connection turns out
// to be closed, and so hides the very failures that are looked for; the kinds
// that use it send what it cannot send again. They are attentive, as browsers
// are: between two requests they notice that the server has closed the
// connection, a response with Connection: close is the last one on its
// connection, and after a GOAWAY they open no stream. What is left then is the
// server's fault, and each failure is counted under its kind.
//
// The server under load answers as package site does.
package load
