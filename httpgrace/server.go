package httpgrace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultDrainTimeout is the limit of the drain at the end of
// [Server.ServeUntil] where [Server.DrainTimeout] is zero.
const DefaultDrainTimeout = 10 * time.Minute

const (
	// lingerTimeout is how long a half-closed connection is still read from.
	lingerTimeout = time.Second

	// firstRequestTime is what an HTTP/2 connection gets that was never used.
	firstRequestTime = time.Second

	// freshTime is what an HTTP/2 connection gets after its first request began:
	// a client that has just made it may be about to ask for more.
	freshTime = 250 * time.Millisecond

	// goAwayTime is the time between the two steps of HTTP/2's farewell, and
	// goAwayLimit how long the second waits for the answer to the first.
	goAwayTime  = time.Second
	goAwayLimit = 5 * time.Second

	// hurryTimeout is what requests in flight get once Hurry is closed.
	hurryTimeout = 5 * time.Second

	// queueTime is how long an Accept of the drain waits for a connection that
	// is in the kernel's queue already, and queueLimit how long it is called.
	queueTime  = 5 * time.Millisecond
	queueLimit = 500 * time.Millisecond

	// stopTimeout bounds the wait for Accept and Close of a listener. Both hang
	// if another process has made the shared socket blocking.
	stopTimeout = 2 * time.Second
)

// A Server is an [http.Server] whose Shutdown loses no request.
//
// Configure the embedded http.Server as usual, before the first call of
// another method; a nil one stands for its zero value. It is the configuration
// only: of its methods that serve or stop, use the ones of Server, which have
// the same names. All methods are safe for concurrent use.
//
// Like an http.Server, a Server that was shut down or closed stays so.
type Server struct {
	*http.Server

	// IdleWait is how long, during a drain, an idle HTTP/1 connection may wait
	// for one more request before it is closed. Zero: until shortly before the
	// drain's limit, which loses least.
	IdleWait time.Duration

	// DrainTimeout limits the drain at the end of ServeUntil. Zero:
	// DefaultDrainTimeout. Negative: no limit. Shutdown has its context.
	DrainTimeout time.Duration

	// LameDuck is how long the server goes on as before when it is told to stop,
	// but for Health, whose answer to "ready" is 503: so long a load balancer
	// needs to send its clients elsewhere. Zero: no time. It is left out where a
	// listener says that another process accepts in its place, as in an upgrade.
	LameDuck time.Duration

	// KeepConn reports that a connection must not be handed over, because the
	// handlers know something about it that its next request needs, or because
	// its peer would notice. It is given the connection as the ConnContext hook
	// is, and may be asked more than once, while nothing is read from it. Nil:
	// any may.
	KeepConn func(net.Conn) bool

	// Hurry, when it is closed, ends the lame duck's time and cuts a drain short:
	// idle connections are closed at once, requests in flight have five seconds more, never exceeding the
	// limit. Nil: never.
	Hurry <-chan struct{}

	setupOnce sync.Once
	born      time.Time
	http1     *http.Server              // handshakes, HTTP/1, and protocols of the caller
	plain     *http.Server              // the same for listeners without TLS; mostly http1
	http2     *http.Server              // what has turned out to be HTTP/2; nil: not spoken
	http2In   *connListener             // the way from http1 to http2
	h2c       bool                      // HTTP/2 in the clear is spoken
	http2Run  sync.Once                 // starts http2
	began     chan struct{}             // closed when the drain begins
	over      chan struct{}             // closed when nothing is left, or it was given up
	draining  atomic.Bool               // began is closed
	dismissal atomic.Pointer[time.Time] // from when on nobody may idle

	stopping atomic.Bool // told to stop: not ready
	probe    sync.Once   // whether net/http reads as handing over needs it
	probed   bool
	notTaken sync.Once // is logged

	handedOver, adopted, closedIdle, late atomic.Int64

	mu        sync.Mutex // guards what follows, and the closing of the channels
	listeners map[*listener]struct{}
	conns     map[*conn]struct{}
	foreign   map[net.Conn]*conn // connections that could not be wrapped
	stopErr   error              // from closing listeners
	cause     error              // why the drain was ended before its end
	forced    Conns              // that were closed then, or by Close
	isOver    bool
}

// Serve accepts connections from ln and serves them, as [http.Server.Serve]
// does, and closes ln in the end. A listener from [TLS] is served with TLS.
//
// When it returns [http.ErrServerClosed], the drain is over: nothing that it
// started is running any more, or it was given up at the drain's limit. (In
// net/http, Serve returns when Shutdown is called.) It returns any other error
// at once and leaves the connections that it has accepted to Shutdown or Close.
//
// Connections of a listener made by [tls.NewListener] cannot be wrapped; they
// are drained, but their last idle moment ends with a plain close. Give ServeTLS
// the listener below instead.
func (s *Server) Serve(ln net.Listener) error {
	if t, ok := ln.(tlsListener); ok {
		return s.ServeTLS(t.Listener, "", "")
	}
	s.setup()
	return s.serve(ln, s.plain.Serve)
}

// ServeTLS is Serve with TLS by the server's TLSConfig and the certificate and
// key of the named files, which may be empty if the TLSConfig has certificates.
// It speaks HTTP/2 where net/http would.
func (s *Server) ServeTLS(ln net.Listener, certFile, keyFile string) error {
	s.setup()
	return s.serve(ln, func(l net.Listener) error {
		return s.http1.ServeTLS(l, certFile, keyFile)
	})
}

// ListenAndServe listens on the TCP address Addr (":http" if empty) and calls Serve.
func (s *Server) ListenAndServe() error {
	ln, err := s.listen(":http")
	if err != nil {
		return err
	}
	return s.Serve(ln)
}

// ListenAndServeTLS listens on the TCP address Addr (":https" if empty) and
// calls ServeTLS.
func (s *Server) ListenAndServeTLS(certFile, keyFile string) error {
	ln, err := s.listen(":https")
	if err != nil {
		return err
	}
	defer ln.Close() // ServeTLS does not if it cannot read the files
	return s.ServeTLS(ln, certFile, keyFile)
}

func (s *Server) listen(fallback string) (net.Listener, error) {
	s.setup()
	if s.draining.Load() {
		return nil, http.ErrServerClosed
	}
	addr := s.Addr
	if addr == "" {
		addr = fallback
	}
	return new(net.ListenConfig).Listen(context.Background(), "tcp", addr)
}

// ServeUntil serves all listeners until done is closed, or until one of them
// fails, and then drains the server within DrainTimeout. It returns when
// everything that it started has returned.
//
// It returns nil after a drain that cut nobody short. Otherwise the error wraps
// the listener's failure, [context.DeadlineExceeded] if the limit was reached,
// or both. A listener made by [TLS] is served with TLS.
func (s *Server) ServeUntil(done <-chan struct{}, listeners ...net.Listener) error {
	served := make(chan error, len(listeners))
	for _, ln := range listeners {
		go func() { served <- s.Serve(ln) }()
	}
	running := len(listeners)
	var failed error
	select {
	case <-done:
	case err := <-served:
		running--
		failed = unlessClosed(err)
	}

	err := s.drain()
	for range running {
		failed = errors.Join(failed, unlessClosed(<-served))
	}
	return errors.Join(failed, err)
}

func unlessClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (s *Server) drain() error {
	ctx := context.Background()
	if s.DrainTimeout >= 0 {
		limit := s.DrainTimeout
		if limit == 0 {
			limit = DefaultDrainTimeout
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	err := s.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("httpgrace: closed at the drain's limit: %v: %w", s.Stats().Forced, err)
	}
	return err
}

// RegisterOnShutdown registers a function that is called, in a goroutine of its
// own, when Shutdown begins; see [http.Server.RegisterOnShutdown]. To end a
// long-lived exchange from within its handler, [Draining] is simpler.
func (s *Server) RegisterOnShutdown(f func()) {
	s.setup()
	s.Server.RegisterOnShutdown(f)
}

// SetKeepAlivesEnabled controls whether HTTP keep-alives are enabled. Unlike a
// drain, disabling them closes idle connections at once, as in net/http.
func (s *Server) SetKeepAlivesEnabled(v bool) {
	s.setup()
	s.Server.SetKeepAlivesEnabled(v)
	s.http1.SetKeepAlivesEnabled(v)
	s.plain.SetKeepAlivesEnabled(v)
	if s.http2 != nil {
		s.http2.SetKeepAlivesEnabled(v)
	}
}
