// Package httpgrace drains a net/http server without losing a request.
//
// [http.Server.Shutdown] stops a server politely towards the server, not
// towards its clients: it closes idle connections although a request may be on
// its way, and it reads a request that arrives during the shutdown and drops
// it. Here Shutdown is a drain, for which the client is asked first:
//
//	accept nothing more ─▶ say "Connection: close" (HTTP/1), GOAWAY (HTTP/2)
//	      ─▶ answer what comes ─▶ half-close what stays idle ─▶ linger ─▶ close
//
// A program becomes lossless by changing a type. [Server] wraps the
// http.Server that the program has configured, and every method has the name
// that it has there:
//
//	srv := &httpgrace.Server{Server: &http.Server{Handler: mux}}
//	err := srv.ServeUntil(done, ln) // done: closed when it is time to go
//
// # What a drain does to a connection
//
//   - Accepted, but nothing read yet, in the middle of a TLS handshake or of a
//     request's header: its request is served in full, with "Connection: close".
//   - A request in flight: it completes, however long it takes within the limit.
//   - Idle between two requests: it stays open for one more request, which is
//     answered with "Connection: close". When none has come within
//     [Server.IdleWait], the write side is closed (after TLS's close_notify) and
//     the read side is kept for up to a second, so that no reset destroys an
//     answer that is still on its way. A request that meets this close is lost;
//     no server can help that. It is counted in [Stats].Late.
//   - Pipelined requests that have arrived are answered before the close.
//   - HTTP/2: GOAWAY; streams complete. A stream that crosses the GOAWAY is
//     refused without having been looked at, as by net/http, so that the client
//     may open it elsewhere. A connection without any stream has a second to
//     open its first.
//   - Hijacked: the handler learns of the drain from [Draining]; the drain waits
//     until it has closed the connection.
//
// At the limit, what is left is closed and counted in [Stats].Forced.
//
// # What stays as it is
//
// All of http.Server's fields and hooks mean what they mean in net/http.
// Connections that a hook or a hijacker sees are wrapped, so a type assertion
// to *net.TCPConn fails; their method NetConn returns the wrapped one, as
// [tls.Conn.NetConn] does. A protocol of the caller's own in TLSNextProto, which
// may be another HTTP/2, is not touched: it learns of the drain by a function
// registered with RegisterOnShutdown, and the drain waits for its connections.
package httpgrace
