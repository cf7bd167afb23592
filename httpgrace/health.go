package httpgrace

import (
	"context"
	"io"
	"net/http"
	"path"
	"time"
)

// lameDuck returns when the drain may begin: at once, unless the service stops
// and its load balancers get LameDuck to notice.
func (s *Server) lameDuck(ctx context.Context) {
	if s.replaced() {
		return
	}
	s.stopping.Store(true)
	if s.LameDuck <= 0 {
		return
	}
	over := time.NewTimer(s.LameDuck)
	defer over.Stop()
	select {
	case <-over.C:
	case <-s.began: // by another call, or Close
	case <-s.Hurry:
	case <-ctx.Done():
	}
}

// replaced reports whether another process serves in this one's place.
func (s *Server) replaced() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.listeners {
		if l.replaced() {
			return true
		}
	}
	return false
}

// Health returns a handler for health checks. It looks at the last element of
// the path: "live" is answered with 200 as long as the process answers at all;
// anything else, "ready" for example, with 200 until the server is told to stop
// and with 503 from then on, first for [Server.LameDuck] and then until the
// drain is over. An upgrade is not a stop: the service is ready all the time.
//
//	mux.Handle("/healthz/", srv.Health()) // /healthz/live and /healthz/ready
//
// A server that is overloaded or waits for its database is not known to it: a
// handler that knows wraps this one.
func (s *Server) Health() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if path.Base(r.URL.Path) != "live" && s.stopping.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, "stopping\n") // who asks has gone
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
}
