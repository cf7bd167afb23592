package httpgrace

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

// health is what a load balancer sees, on a path of the service.
func (s *Server) health(path string) int {
	w := httptest.NewRecorder()
	s.Health().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, http.NoBody))
	return w.Code
}

func (b *bench) wantHealth(ready int) {
	b.Helper()
	for path, want := range map[string]int{
		"/healthz/live": 200, "/live": 200,
		"/healthz/ready": ready, "/healthz": ready, "/healthz/": ready,
	} {
		if got := b.srv.health(path); got != want {
			b.Errorf("%s: %d, want %d", path, got, want)
		}
	}
}

// A lame duck serves as before, new connections and old ones, and says that it
// goes. Then it drains.
func TestLameDuckServesAndIsNotReady(t *testing.T) {
	virtual(t, &Server{LameDuck: 5 * time.Second}, func(b *bench) {
		b.wantHealth(200)
		c := b.idle()
		shut := b.shuttingDown()
		b.wantHealth(503)
		for range 4 {
			time.Sleep(time.Second)
			d := b.dial()
			for _, c := range []*client{c, d} {
				if _, closes := c.ask(get("/")); closes {
					b.Error("the drain has begun")
				}
			}
			d.nc.Close()
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if _, closes := c.ask(get("/")); !closes {
			b.Error("the drain has not begun")
		}
		c.nc.Close()
		if err := <-shut; err != nil {
			b.Error(err)
		}
		b.wantHealth(503)
	})
}

func TestEndOfALameDuck(t *testing.T) {
	for name, end := range map[string]struct {
		after time.Duration
		by    func(*bench, context.CancelFunc, chan struct{})
		err   error
	}{
		"the limit":    {time.Second, func(_ *bench, cancel context.CancelFunc, _ chan struct{}) { cancel() }, context.Canceled},
		"hurry":        {time.Second, func(_ *bench, _ context.CancelFunc, hurry chan struct{}) { close(hurry) }, nil},
		"close":        {time.Second, func(b *bench, _ context.CancelFunc, _ chan struct{}) { b.srv.Close() }, http.ErrServerClosed},
		"its own time": {10 * time.Second, func(*bench, context.CancelFunc, chan struct{}) {}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			srv := &Server{LameDuck: 10 * time.Second, IdleWait: time.Nanosecond}
			virtual(t, srv, func(b *bench) {
				hurry := make(chan struct{})
				srv.Hurry = hurry
				c := b.idle()
				ctx, cancel := context.WithCancel(b.Context())
				defer cancel()
				start := time.Now()
				shut := make(chan error, 1)
				go func() { shut <- b.srv.Shutdown(ctx) }()
				time.Sleep(time.Second)
				synctest.Wait()
				end.by(b, cancel, hurry)
				<-srv.began
				if d := time.Since(start); d != end.after {
					b.Errorf("the drain begins after %v, want %v", d, end.after)
				}
				c.ends()
				c.nc.Close()
				if err := <-shut; !errors.Is(err, end.err) {
					b.Errorf("%v, want %v", err, end.err)
				}
			})
		})
	}
}

// Several calls are one duck.
func TestLameDuckOfSeveralShutdowns(t *testing.T) {
	virtual(t, &Server{LameDuck: 5 * time.Second}, func(b *bench) {
		start := time.Now()
		first := b.shuttingDown()
		time.Sleep(3 * time.Second)
		second := b.shuttingDown()
		for _, shut := range []chan error{first, second} {
			if err := <-shut; err != nil || time.Since(start) != 5*time.Second {
				b.Errorf("%v after %v", err, time.Since(start))
			}
		}
	})
}

// In an upgrade another process is ready in this one's place. Nobody waits, and
// nobody who asks on a connection that is kept is told to go elsewhere.
func TestUpgradeHasNoLameDuck(t *testing.T) {
	succeed(t, func(s *succession) { s.old.LameDuck = time.Minute }, func(s *succession) {
		c := s.dial()
		if d := s.shutdown(); d != 0 {
			s.Errorf("took %v", d)
		}
		if got := s.old.health("/ready"); got != 200 {
			s.Errorf("the old one says %d", got)
		}
		s.asks(c, get("/"), "new /")
	})
}
