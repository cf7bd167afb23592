package httpgrace

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

// TLS marks a listener as one that Serve and ServeUntil serve with TLS, by the
// certificates in the server's TLSConfig, as ServeTLS does. It is what lets one
// call of ServeUntil serve listeners of both kinds:
//
//	srv.ServeUntil(done, plain, httpgrace.TLS(encrypted))
func TLS(ln net.Listener) net.Listener { return tlsListener{ln} }

type tlsListener struct{ net.Listener }

// Accept fails: anyone else who accepted here would get a connection in the clear.
func (tlsListener) Accept() (net.Conn, error) {
	return nil, errors.New("httpgrace: a listener from TLS can be served by httpgrace.Server only")
}

// A listener is what the inner server accepts from.
type listener struct {
	net.Listener // the caller's
	s            *Server
	heir         heir    // takes connections over, once the server drains; nil: nobody does
	adopts       adopter // nil: every connection is new

	closing sync.Once
	closed  chan struct{} // closed when Close of the caller's has returned; nil before it is called; guarded by s.mu
	done    chan struct{} // closed when the server no longer counts on it
	dropped bool          // done is closed; guarded by s.mu
	until   time.Time     // during a drain, accept no longer than this; guarded by s.mu
}

// serve runs serve, a method of an inner server, on ln.
func (s *Server) serve(ln net.Listener, serve func(net.Listener) error) error {
	l := &listener{Listener: ln, s: s, done: make(chan struct{})}
	l.adopts, _ = ln.(adopter)
	if l.heir, _ = ln.(heir); l.heir != nil && !s.canHandOver() {
		l.heir = nil
	}
	if !s.addListener(l) {
		l.Close()
		return http.ErrServerClosed
	}
	// Serve of an inner server hangs in Accept where the caller's socket was
	// made blocking, so this goroutine's end is waited for with a limit only.
	served := make(chan error, 1)
	go func() {
		served <- serve(l)
		s.removeListener(l)
	}()
	select {
	case err := <-served:
		if !errors.Is(err, http.ErrServerClosed) || !s.draining.Load() {
			return err
		}
	case <-s.over:
	}
	<-s.over
	return http.ErrServerClosed
}

func (s *Server) addListener(l *listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

// removeListener waits until l is closed, if it is being closed: a file of a
// unix socket, for one, must be gone when the drain is over.
func (s *Server) removeListener(l *listener) {
	s.mu.Lock()
	closed := l.closed
	s.mu.Unlock()
	if closed != nil {
		<-closed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropListener(l)
	s.settle()
}

// dropListener forgets l. Callers hold mu.
func (s *Server) dropListener(l *listener) {
	delete(s.listeners, l)
	if !l.dropped {
		l.dropped = true
		close(l.done)
	}
}

// Accept returns the next connection, known to the server: from here on the
// drain waits for it.
func (l *listener) Accept() (net.Conn, error) {
	for tries := 0; l.mayAccept(); {
		nc, err := l.Listener.Accept()
		if err == nil {
			return l.track(nc), nil
		}
		if !l.s.draining.Load() {
			return nil, err
		}
		// The first timeout may be one that expired before Accept looked.
		if tries++; tries == 2 || !isTimeout(err) {
			break
		}
	}
	return nil, http.ErrServerClosed
}

// mayAccept is true until the drain begins, and then as long as connections
// that the kernel has completed are waiting: closing the last descriptor
// of a socket resets them. Where a successor has the socket it does not matter
// which of the two accepts.
func (l *listener) mayAccept() bool {
	if !l.s.draining.Load() {
		return true
	}
	d, ok := l.Listener.(deadliner)
	l.s.mu.Lock()
	until := l.until
	l.s.mu.Unlock()
	now := time.Now()
	return ok && now.Before(until) && d.SetDeadline(now.Add(queueTime)) == nil
}

type deadliner interface{ SetDeadline(time.Time) error }

// stop makes Accept fail as soon as nobody is waiting to be accepted. An Accept
// that cannot be interrupted by a deadline is by Close.
func (l *listener) stop() {
	d, ok := l.Listener.(deadliner)
	if !ok {
		l.Close()
		return
	}
	now := time.Now()
	l.s.mu.Lock()
	l.until = now.Add(queueLimit)
	l.s.mu.Unlock()
	if d.SetDeadline(now.Add(queueTime)) != nil {
		l.Close()
		return
	}
	time.AfterFunc(queueLimit, func() { l.Close() }) // it may ignore deadlines
}

// Close closes the caller's listener, which is also what ends its Accept, and
// returns at once: Close of a socket that another process has made blocking
// returns only when its Accept does.
func (l *listener) Close() error {
	l.closing.Do(func() {
		closed := make(chan struct{})
		l.s.mu.Lock()
		l.closed = closed
		l.s.mu.Unlock()
		go func() {
			defer close(closed)
			err := l.Listener.Close()
			if err != nil && !errors.Is(err, net.ErrClosed) {
				l.s.mu.Lock()
				l.s.stopErr = errors.Join(l.s.stopErr, err)
				l.s.mu.Unlock()
			}
		}()
	})
	return nil
}

// track returns nc as the inner server shall see it.
func (l *listener) track(nc net.Conn) net.Conn {
	var c *conn
	switch nc := nc.(type) {
	case *net.TCPConn:
		t := new(tcpConn)
		c = &t.conn
		c.init(l, nc, t)
	case *tls.Conn: // net/http must see this very type
		c = new(conn)
		c.init(l, nc, nc)
		c.flags.Store(isForeign)
	case stater:
		t := &stateConn{stater: nc}
		c = &t.conn
		c.init(l, nc, t)
	default:
		c = new(conn)
		c.init(l, nc, c)
	}
	if l.adopts != nil && l.adopts.Adopted(nc) {
		c.change(0, adopted)
		l.s.adopted.Add(1)
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.s.conns[c] = struct{}{}
	if c.has(isForeign) {
		l.s.foreign[nc] = c
	}
	return c.face
}

// find returns what track knows about nc.
func (s *Server) find(nc net.Conn) *conn {
	switch nc := nc.(type) {
	case *conn:
		return nc
	case *tcpConn:
		return &nc.conn
	case *stateConn:
		return &nc.conn
	case *http2Conn:
		return nc.conn
	case *tls.Conn:
		if c := s.find(nc.NetConn()); c != nil {
			return c
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.foreign[nc]
	}
	return nil
}

// forget is called when c is closed and nobody works for it any more.
func (s *Server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if c.has(isForeign) {
		delete(s.foreign, c.face)
	}
	s.settle()
}

// A connListener is fed by a function call.
type connListener struct {
	conns chan net.Conn
	done  <-chan struct{}
}

// offer returns false if nobody accepts any more.
func (l *connListener) offer(nc net.Conn) bool {
	select {
	case l.conns <- nc:
		return true
	case <-l.done:
		return false
	}
}

func (l *connListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *connListener) Close() error   { return nil }
func (l *connListener) Addr() net.Addr { return &net.TCPAddr{} }
