package httpgrace

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"time"
)

const clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// newHTTP2 returns the server for HTTP/2, or nil if none is to be spoken or
// the caller has one of his own.
func (s *Server) newHTTP2() *http.Server {
	_, others := s.TLSNextProto["h2"]
	p := s.protocols()
	if others || !p.HTTP2() && !p.UnencryptedHTTP2() {
		return nil
	}
	hs := s.inner()
	// What it gets is decrypted, so that what we show it in Read and see in
	// Write are frames. It takes the connection for one in the clear.
	hs.Protocols = new(http.Protocols)
	hs.Protocols.SetUnencryptedHTTP2(true)
	hs.TLSConfig = hs.TLSConfig.Clone()
	hs.TLSNextProto = nil
	hs.Handler = http.HandlerFunc(s.handleHTTP2)
	hs.BaseContext = nil
	hs.ConnContext = func(_ context.Context, nc net.Conn) context.Context {
		return s.find(nc).base
	}
	hs.ConnState = s.http2State

	// net/http configures HTTP/2 when it begins to serve. It refuses if the
	// TLSConfig cannot do, and it does nothing if GODEBUG says so. Then http1
	// says the same, and there is no HTTP/2.
	closed := make(chan struct{})
	close(closed)
	_ = hs.Serve(&connListener{done: closed})
	if _, ok := hs.TLSNextProto["h2"]; !ok {
		return nil
	}
	return hs
}

// serveHTTP2 is called by net/http when "h2" was negotiated. It returns when
// the connection is closed, as net/http closes it then.
func (s *Server) serveHTTP2(_ *http.Server, tc *tls.Conn, _ http.Handler) {
	c := s.find(tc)
	state := tc.ConnectionState()
	if !s.secure(&state) {
		_, _ = tc.Write(goAwayFrame(0, inadequateSecurity))
		return
	}
	h := newHTTP2Conn(c, tc, "")
	h.tls = &state
	if s.divert(h) {
		<-h.closed
	}
}

// divert passes a connection to the server for HTTP/2.
func (s *Server) divert(h *http2Conn) bool {
	s.http2Run.Do(func() {
		go func() { _ = s.http2.Serve(s.http2In) }() // ends when s is over
	})
	return s.http2In.offer(h)
}

// secure reports whether HTTP/2 may be spoken over this TLS connection:
// RFC 9113 §9.2 wants TLS 1.2 and, of its cipher suites, those with an ephemeral key
// and authenticated encryption. net/http checks this only where it sees the TLS.
func (s *Server) secure(state *tls.ConnectionState) bool {
	if state.Version != tls.VersionTLS12 {
		return state.Version > tls.VersionTLS12
	}
	switch state.CipherSuite {
	case tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256:
		return true
	}
	return s.HTTP2 != nil && s.HTTP2.PermitProhibitedCipherSuites
}

func (s *Server) handleHTTP2(w http.ResponseWriter, r *http.Request) {
	if h := connOf(r.Context()).http2.Load(); r.TLS == nil {
		r.TLS = h.tls
	}
	s.handle(w, r)
}

// http2State follows the ConnState hook of the server for HTTP/2. The caller
// has been told of a new connection already, and is told by http1 when one under TLS
// is closed.
func (s *Server) http2State(nc net.Conn, state http.ConnState) {
	c := s.find(nc)
	if state == http.StateNew || state == http.StateClosed && c.http2.Load().tls != nil {
		return
	}
	c.enter(c.face, state)
	if s.ConnState != nil {
		s.ConnState(c.face, state)
	}
	if state == http.StateClosed {
		c.leaves(served)
	}
}

// sniff looks whether a connection in the clear begins with the preface of
// HTTP/2, of which p[:n] has been read, and if so sends it where that is spoken.
func (c *conn) sniff(p []byte, n int, err error) (int, error) {
	if _, tls := c.face.(stater); tls || len(p) < len(clientPreface) {
		return n, err
	}
	for err == nil && n < len(clientPreface) && string(p[:n]) == clientPreface[:n] {
		var m int
		m, err = c.read(p[n:])
		n += m
	}
	if n < len(clientPreface) || string(p[:len(clientPreface)]) != clientPreface {
		if c.l.s.plain != c.l.s.http1 {
			return 0, io.EOF // HTTP/1 is not spoken
		}
		return n, nil // an error comes again
	}
	_ = c.SetDeadline(time.Time{}) // of the header
	if c.l.s.divert(newHTTP2Conn(c, c.face, string(p[:n]))) {
		c.change(0, diverted)
	}
	return 0, io.EOF
}
