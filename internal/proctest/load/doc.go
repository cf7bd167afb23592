// Package load puts clients on an HTTP/1.1 server and counts what they lose.
//
// The clients never retry. They write their requests by hand, because
// net/http's Transport sends a request again when a kept connection turns out
// to be closed, and so hides the very failures that are looked for. They are
// attentive, as browsers are: between two requests they notice that the server
// has closed the connection, and a response with Connection: close is the last
// one on its connection. What is left then is the server's fault, and each
// failure is counted under its kind.
//
// The server under load answers as cmd/demo does:
//
//	GET  /              one line, pid=… generation=… version=…
//	POST /echo          the body that was sent
//	GET  /slow?ms=N     the line "slow ms=N", after N milliseconds
//	GET  /stream?ms=N   "line 1", "line 2"… one every 10 ms, then "end"
package load
