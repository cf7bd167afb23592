package httpgrace

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"
)

// Shutdown drains the server and returns when nothing is left of it: the
// package comment says what that means for each kind of connection. Where
// LameDuck is set and the service stops, that time comes first. ctx is the limit
// of both. When it ends, what is left is closed and counted in
// [Stats].Forced, and Shutdown returns ctx's error without waiting for handlers
// that are still running. Where ctx has a deadline, connections that are idle a
// second before it are closed then, so that this too is done gently.
//
// Otherwise it returns the errors from closing the listeners, if any. Functions
// registered with RegisterOnShutdown are called first, and not waited for.
//
// Several calls drain once, and all return when it is over: the first limit that
// is reached ends it. A call of Close does too; then Shutdown returns
// [http.ErrServerClosed].
func (s *Server) Shutdown(ctx context.Context) error {
	s.setup()
	s.lameDuck(ctx)
	if s.begin((*listener).hasHeir) {
		s.tellOthers()
	}
	lastCall, stop := beforeDeadline(ctx)
	defer stop()
	stuck := time.NewTimer(stopTimeout)
	defer stuck.Stop()
	hurry := s.Hurry
	for {
		select {
		case <-s.over:
			return s.result()
		case <-lastCall:
			s.dismissIdle()
		case <-hurry:
			hurry = nil
			s.dismissIdle()
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, hurryTimeout)
			defer cancel()
		case <-stuck.C:
			s.abandonListeners()
		case <-ctx.Done():
			s.finish(ctx.Err())
			return s.result()
		}
	}
}

// beforeDeadline returns a channel that delivers when there is just enough time
// left to close idle connections with care.
func beforeDeadline(ctx context.Context) (lastCall <-chan time.Time, stop func()) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return nil, func() {}
	}
	left := time.Until(deadline)
	t := time.NewTimer(left - min(lingerTimeout, left/2))
	return t.C, func() { t.Stop() }
}

// Close closes the listeners and all connections at once, also hijacked ones,
// and counts the connections as forced. It does not wait for handlers. It
// returns the errors from closing the listeners.
func (s *Server) Close() error {
	s.setup()
	s.begin(func(*listener) bool { return false })
	s.mu.Lock()
	if !s.isOver {
		s.cause = http.ErrServerClosed
	}
	listeners := slices.Collect(maps.Keys(s.listeners))
	s.mu.Unlock()
	for _, l := range listeners {
		l.Close()
	}
	s.closeConns()

	stuck := time.NewTimer(stopTimeout)
	defer stuck.Stop()
	for _, l := range listeners {
		select {
		case <-l.done:
		case <-stuck.C:
			s.abandonListeners() // closes each done
		}
	}
	s.finish(http.ErrServerClosed)
	_ = s.Server.Close() // it has nothing, but refuses to serve from now on
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopErr
}

// begin stops the listeners and tells every connection that the drain has
// begun. Those of a listener that hasHeir are handed over where they can be. It
// reports whether this call did so.
func (s *Server) begin(hasHeir func(*listener) bool) bool {
	s.mu.Lock()
	if s.draining.Load() {
		s.mu.Unlock()
		return false
	}
	listeners := slices.Collect(maps.Keys(s.listeners))
	for _, l := range listeners {
		if !hasHeir(l) {
			l.heir = nil
		}
	}
	s.draining.Store(true)
	close(s.began)
	s.settle()
	s.mu.Unlock()

	for _, l := range listeners {
		l.stop()
	}
	s.stirConns()
	return true
}

// tellOthers runs the functions that were registered with RegisterOnShutdown,
// by this package's method or directly. The caller's http.Server serves
// nothing, so its Shutdown does nothing else and returns at once.
func (s *Server) tellOthers() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = s.Server.Shutdown(ctx)
}

// stirConns makes each connection look at the state of the drain.
func (s *Server) stirConns() {
	s.mu.Lock()
	conns := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, c := range conns {
		c.stir()
	}
}

// dismissIdle ends the patience with idle connections.
func (s *Server) dismissIdle() {
	now := time.Now()
	if s.dismissal.CompareAndSwap(nil, &now) {
		s.stirConns()
	}
}

// patience returns until when a connection may idle that has done so since the
// given time; no means without limit.
func (s *Server) patience(since time.Time) (until time.Time, limited bool) {
	if s.IdleWait > 0 {
		until, limited = since.Add(s.IdleWait), true
	}
	if d := s.dismissal.Load(); d != nil && (!limited || d.Before(until)) {
		until, limited = *d, true
	}
	return until, limited
}

// abandonListeners gives up on listeners that cannot be stopped, so that the
// drain can end without them.
func (s *Server) abandonListeners() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.listeners {
		s.stopErr = errors.Join(s.stopErr, fmt.Errorf("httpgrace: %v cannot be closed: its socket was made blocking", l.Addr()))
		s.dropListener(l)
	}
	s.settle()
}

// finish closes what is left and ends the drain because of err. It does nothing
// if the drain is over.
func (s *Server) finish(err error) {
	s.mu.Lock()
	if s.isOver {
		s.mu.Unlock()
		return
	}
	s.isOver = true
	s.cause = err
	s.mu.Unlock()
	s.closeConns()
	close(s.over)
}

// closeConns closes every connection. It does not wait for Close, which belongs
// to whoever made the listener.
func (s *Server) closeConns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.flags.Or(cut)&(cut|parting) == 0 {
			s.forced.add(c)
		}
		go func() {
			_ = c.Conn.Close() // whatever it says, we are through with it
			c.leaves(socketClosed)
		}()
	}
}

// settle ends the drain when nothing is left. Callers hold mu.
func (s *Server) settle() {
	if s.draining.Load() && len(s.listeners) == 0 && len(s.conns) == 0 && !s.isOver {
		s.isOver = true
		close(s.over)
	}
}

// result is what Shutdown returns when the drain is over.
func (s *Server) result() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return s.cause
	}
	return s.stopErr
}
