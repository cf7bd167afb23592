// Package site is what the HTTP servers of this repository serve, cmd/demo and
// the servers under test alike: a few of the things that get lost where an
// upgrade is not what it should be.
//
//	GET  /                      one line, pid=… generation=… version=…
//	POST /echo                  the body that was sent
//	GET  /slow?ms=N             the line "slow ms=N", after N milliseconds
//	GET  /stream?ms=N           "line 1", "line 2"… one every 10 ms, then "end"
//	GET  /download?ms=N&seed=S  a body of known length, a block every 10 ms
//	GET  /cached                a body with an ETag
//	POST /trailers              the body and the trailer X-Check that were sent
//	GET  /events                server-sent events, one every 10 ms
//	GET  /ws                    a WebSocket that echoes
//	GET  /heap?mb=N             touches and keeps so much memory
//	GET  /page                  a page that fetches and echoes, and counts what fails
//	GET  /healthz               "ok"
package site
