package httpgrace

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"strings"
	"time"
)

// The caller's http.Server is read, and told of the shutdown, but serves nothing.
// Servers of our own do that, with the same configuration: Shutdown of the one
// that serves HTTP/1 is never called, as that is what loses requests, and
// HTTP/2 has its own, so that we stand between its frames and the connection.

func (s *Server) setup() { s.setupOnce.Do(s.configure) }

func (s *Server) configure() {
	if s.Server == nil {
		s.Server = new(http.Server)
	}
	s.born = time.Now().Add(-1) // no moment is 0
	s.began = make(chan struct{})
	s.over = make(chan struct{})
	s.mu.Lock() // Stats does not set up, and may be under way
	s.listeners = make(map[*listener]struct{})
	s.conns = make(map[*conn]struct{})
	s.foreign = make(map[net.Conn]*conn)
	s.mu.Unlock()

	s.http1 = s.newHTTP1()
	s.plain = s.http1
	if s.http2 = s.newHTTP2(); s.http2 == nil {
		return
	}
	s.http2In = &connListener{conns: make(chan net.Conn), done: s.over}
	spoken := s.protocols()
	s.h2c = spoken.UnencryptedHTTP2()
	if spoken.HTTP1() || spoken.HTTP2() { // none at all would mean the default
		spoken.SetUnencryptedHTTP2(false) // we look for it ourselves
	}
	s.http1.Protocols = &spoken
	if spoken.HTTP2() {
		if s.http1.TLSNextProto == nil {
			s.http1.TLSNextProto = make(map[string]func(*http.Server, *tls.Conn, http.Handler))
		}
		s.http1.TLSNextProto["h2"] = s.serveHTTP2
	}
	if s.h2c && !spoken.HTTP1() {
		s.plain = s.newHTTP1() // reads the preface, and nothing else
		s.plain.Protocols = new(http.Protocols)
		s.plain.Protocols.SetHTTP1(true)
	}
}

// protocols returns what the caller's server would speak.
func (s *Server) protocols() http.Protocols {
	if s.Protocols != nil {
		return *s.Protocols
	}
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetHTTP2(s.TLSNextProto == nil)
	return p
}

// inner returns a server with the caller's configuration.
func (s *Server) inner() *http.Server {
	hs := s.Server
	inner := &http.Server{
		Addr:                         hs.Addr,
		Handler:                      http.HandlerFunc(s.handle),
		DisableGeneralOptionsHandler: hs.DisableGeneralOptionsHandler,
		TLSConfig:                    hs.TLSConfig,
		ReadTimeout:                  hs.ReadTimeout,
		ReadHeaderTimeout:            hs.ReadHeaderTimeout,
		WriteTimeout:                 hs.WriteTimeout,
		IdleTimeout:                  hs.IdleTimeout,
		MaxHeaderBytes:               hs.MaxHeaderBytes,
		TLSNextProto:                 hs.TLSNextProto,
		ConnState:                    s.connState,
		ErrorLog:                     hs.ErrorLog,
		BaseContext:                  hs.BaseContext,
		ConnContext:                  s.connContext,
		HTTP2:                        hs.HTTP2,
		Protocols:                    hs.Protocols,
	}
	passOn(hs, inner)
	return inner
}

func (s *Server) newHTTP1() *http.Server {
	hs := s.inner()
	if hs.BaseContext != nil {
		hs.BaseContext = func(ln net.Listener) context.Context {
			if l, ok := ln.(*listener); ok {
				ln = l.Listener
			}
			return s.BaseContext(ln)
		}
	}
	hs.TLSNextProto = maps.Clone(hs.TLSNextProto)
	for name, serve := range hs.TLSNextProto {
		hs.TLSNextProto[name] = func(_ *http.Server, tc *tls.Conn, h http.Handler) {
			s.find(tc).enter(tc, http.StateActive) // for good: its protocol is not known here
			serve(s.Server, tc, h)
		}
	}
	return hs
}

// handle is the handler of the inner servers.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	if s.draining.Load() && r.ProtoMajor == 1 && mayClose(r) {
		w.Header()["Connection"] = []string{"close"}
	}
	h := s.Handler
	if h == nil {
		h = http.DefaultServeMux
	}
	h.ServeHTTP(w, r)
}

// mayClose reports whether the connection may be closed after the response.
func mayClose(r *http.Request) bool {
	if u := r.Header.Get("Upgrade"); u != "" && !strings.EqualFold(u, "h2c") {
		return false // the header says what becomes of the connection; net/http ignores h2c
	}
	c := connOf(r.Context())
	if c.has(isForeign) {
		return true // what was read ahead is not known, nor does it matter to most
	}
	return !c.behind(r) && !c.movable() // behind counts, whatever comes of it
}

func connOf(ctx context.Context) *conn {
	c, _ := ctx.Value(connKey{}).(*conn)
	return c
}

// connContext runs the caller's hook, and makes sure that requests find their
// connection whatever the hook returns.
func (s *Server) connContext(ctx context.Context, nc net.Conn) context.Context {
	c := s.find(nc)
	c.ctx = connContext{ctx, c}
	ctx = &c.ctx
	if s.ConnContext != nil {
		ctx = s.ConnContext(ctx, nc)
	}
	if ctx != nil && connOf(ctx) != c { // net/http complains of nil
		ctx = &connContext{ctx, c}
	}
	c.base = ctx
	return ctx
}

func (s *Server) connState(nc net.Conn, state http.ConnState) {
	c := s.find(nc)
	if state == http.StateClosed && c.has(diverted) {
		return // goes on as an HTTP/2 connection
	}
	c.enter(nc, state)
	if s.ConnState != nil {
		s.ConnState(nc, state)
	}
	if state == http.StateClosed {
		c.leaves(served)
	}
	if c.has(isForeign) && (state == http.StateClosed || state == http.StateHijacked) {
		s.forget(c) // we see nothing more of it
	}
}

// Draining returns a channel that is closed when the drain of the server begins
// that serves the request with this context. A handler of a WebSocket, of
// server-sent events or of a long poll waits for it beside its own events, and ends
// its exchange. It returns nil, which blocks for ever, for any other context.
func Draining(ctx context.Context) <-chan struct{} {
	if c := connOf(ctx); c != nil {
		return c.l.s.began
	}
	return nil
}
