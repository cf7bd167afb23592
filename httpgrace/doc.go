// Package httpgrace drains a net/http server without losing a request.
//
// [http.Server.Shutdown] stops a server politely towards the server, not
// towards its clients: it closes idle connections although a request may be on
// its way, and it reads a request that arrives during the shutdown and drops
// it. Here Shutdown is a drain, for which the client is asked first:
//
//	accept nothing more ─▶ hand over what is idle to the next process, if there is one
//	      ─▶ else say "Connection: close" (HTTP/1), GOAWAY (HTTP/2)
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
//   - Idle, or accepted and not read from yet, in HTTP/1 and in the clear: it is
//     handed over to the process that serves now, if the listener can do that
//     (below). The client notices nothing.
//   - A request in flight: it completes, however long it takes within the limit,
//     and so do pipelined requests that have arrived. Then the connection is
//     handed over, or the last response says "Connection: close".
//   - In the middle of a TLS handshake or of a request's header: the request is
//     served in full; then as above.
//   - Idle, and it cannot be handed over: it stays open for one more request,
//     which is answered with "Connection: close". When none has come within
//     [Server.IdleWait], the write side is closed (after TLS's close_notify) and
//     the read side is kept for up to a second, so that no reset destroys an
//     answer that is still on its way. A request that meets this close is lost;
//     no server can help that. It is counted in [Stats].Late.
//   - HTTP/2, under TLS or in the clear: a GOAWAY that refuses nothing, and after
//     a second and a round trip the one with the last stream, as RFC 9113 §6.8
//     has it. Streams complete. A connection that has just been made gets its
//     first request in.
//   - Hijacked: the handler learns of the drain from [Draining]; the drain waits
//     until it has closed the connection. A WebSocket so has the time to send a
//     close with code 1001, and server-sent events to end with a whole event.
//
// At the limit, what is left is closed, and counted in [Stats].Forced by what it
// was doing.
//
// # Handing over
//
// A listener with a method HandOver(net.Conn) error gives connections to another
// process, whose listener accepts them: upgrader's is one. HandOver is called
// with a connection as Accept has returned it, when no Read or Write is under way
// and nothing of a request has been read. If it fails, the connection must be as
// before; it is then drained here. Two more methods are of use where they are.
// Adopted(net.Conn) bool tells the next process that a connection which it has
// accepted was idle in another one: it has IdleTimeout until its next request,
// and ReadHeaderTimeout and ReadTimeout only from then on. Replaced() bool tells
// an upgrade from a stop: where it is false nobody is asked to take connections.
// A listener that wraps another one, and its connections, should have none of
// them.
//
// TLS connections cannot be handed over: the keys of their records are where
// crypto/tls keeps them. [SessionTickets] spares their clients the full handshake.
// [Server.KeepConn] opts a connection out, for handlers that know their clients by
// the connection.
//
// That nothing of a request has been read is concluded from how net/http reads
// and sets deadlines. This is tested against the net/http that is linked in
// before the first such listener is served. If it is another one than was
// expected, one line is logged and nothing is handed over.
//
// # What stays as it is
//
// All of http.Server's fields and hooks mean what they mean in net/http.
// Connections that a hook or a hijacker sees are wrapped, so a type assertion
// to *net.TCPConn fails; their method NetConn returns the wrapped one, as
// [tls.Conn.NetConn] does. ConnState tells of the end of a connection that is
// handed over by StateClosed, and in the next process it is StateNew, although it
// is counted as idle. A protocol of the caller's own in TLSNextProto, which may
// be another HTTP/2, is not touched: it learns of the drain by a function
// registered with RegisterOnShutdown, and the drain waits for its connections.
package httpgrace
