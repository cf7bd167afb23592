package httpgrace

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// A request that meets the close cannot be saved, but it is counted, and its
// client is not reset before it has read the end of the stream.
func TestRequestThatMeetsTheCloseIsCounted(t *testing.T) {
	for _, tls := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", tls), func(t *testing.T) {
			r := startRig(t, rigOptions{kind: graceKind, tls: tls})
			late, punctual := r.dial(), r.dial()
			late.ask(get("/"))
			punctual.ask(get("/"))
			r.waitState(http.StateIdle)
			r.waitState(http.StateIdle)
			r.shutdown(20 * time.Second)
			r.grace().dismissIdle()
			for _, c := range []*client{late, punctual} {
				if err := c.ends(); err != nil {
					t.Errorf("end: %v", err)
				}
			}
			late.send(get("/"))
			late.nc.Close()
			punctual.nc.Close()
			r.drained()
			if st := r.grace().Stats(); st != (Stats{ClosedIdle: 2, Late: 1}) {
				t.Errorf("%+v", st)
			}
		})
	}
}

// When the last call comes, what is in the socket is served, although the
// reader has not been scheduled to read it.
func TestRequestInTheSocketAtTheLastCallIsServed(t *testing.T) {
	r := startRig(t, rigOptions{kind: graceKind, spy: true})
	c := r.dial()
	c.ask(get("/"))
	r.waitState(http.StateIdle)
	r.shutdown(20 * time.Second)
	if err := c.send(get("/")); err != nil {
		t.Fatal(err)
	}
	r.grace().dismissIdle()
	if _, _, err := c.answer(); err != nil {
		t.Error(err)
	}
	c.nc.Close()
	r.drained()
}

func TestStatsCountConnectionsByState(t *testing.T) {
	virtual(t, &Server{Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hijack" {
			w.(http.Hijacker).Hijack()
			return
		}
		sleepy(w, r)
	})}}, func(b *bench) {
		fresh, _, active, hijacked := b.dial(), b.idle(), b.dial(), b.dial()
		go active.get("/10s")
		hijacked.send(get("/hijack"))
		b.want(Stats{Conns: Conns{New: 1, Idle: 1, Active: 1, Hijacked: 1}})
		fresh.nc.Close()
		b.want(Stats{Conns: Conns{Idle: 1, Active: 1, Hijacked: 1}})
		b.srv.Close()
		time.Sleep(time.Minute)
		b.want(Stats{Forced: Conns{Idle: 1, Active: 1, Hijacked: 1}})
	})
}

func TestHijackedConnectionsAreClosedAtTheLimit(t *testing.T) {
	virtual(t, &Server{Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Hijacker).Hijack()
	})}}, func(b *bench) {
		c := b.dial()
		c.send(get("/"))
		synctest.Wait()
		if d, err := b.shutdown(5 * time.Second); !errors.Is(err, context.DeadlineExceeded) || d != 5*time.Second {
			b.Errorf("%v after %v", err, d)
		}
		if err := c.ends(); err != nil {
			b.Error(err)
		}
	})
}

// TestStatsBeforeTheServerServes: whoever counts connections for a status does
// not know whether it does yet.
func TestStatsBeforeTheServerServes(t *testing.T) {
	s := &Server{Server: &http.Server{Handler: http.NotFoundHandler()}}
	asked := make(chan Stats)
	go func() { asked <- s.Stats() }()
	if err := s.Shutdown(t.Context()); err != nil { // it sets up
		t.Error(err)
	}
	if st := <-asked; st != (Stats{}) {
		t.Errorf("%+v", st)
	}
}
