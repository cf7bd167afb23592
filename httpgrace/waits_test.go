package httpgrace

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// In net/http, Shutdown waits five seconds for somebody who says nothing.
func TestSilentNewConnectionIsLetGoAtTheIdleWait(t *testing.T) {
	took := func(srv server) (d time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			ln := newPipeListener()
			go srv.Serve(ln)
			nc := ln.dial()
			defer nc.Close()
			synctest.Wait()
			start := time.Now()
			if err := srv.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			d = time.Since(start)
		})
		return d
	}
	if d := took(&http.Server{Handler: http.HandlerFunc(hello)}); d < 5*time.Second {
		t.Errorf("net/http took %v", d)
	}
	srv := &Server{Server: &http.Server{Handler: http.HandlerFunc(hello)}, IdleWait: time.Second}
	if d := took(srv); d != time.Second+lookTime {
		t.Errorf("took %v", d)
	}
	if st := srv.Stats(); st != (Stats{ClosedIdle: 1}) {
		t.Errorf("%+v", st)
	}
}

// In net/http, Serve returns when Shutdown begins, and a main that ends there
// ends everything.
func TestServeReturnsAfterTheLastRequest(t *testing.T) {
	returned := func(k kind) (d time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			ln := newPipeListener()
			srv := k.make(&http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				time.Sleep(10 * time.Second)
			})})
			start := time.Now()
			served := serving(srv, ln)
			c := newClient(t, ln.dial())
			answered := answering(c)
			synctest.Wait()
			go srv.Shutdown(t.Context())
			if err := <-served; !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("Serve: %v", err)
			}
			d = time.Since(start)
			if err := <-answered; err != nil {
				t.Error(err)
			}
			synctest.Wait()
		})
		return d
	}
	if d := returned(plainKind); d != 0 {
		t.Errorf("net/http: after %v", d)
	}
	if d := returned(graceKind); d < 10*time.Second {
		t.Errorf("after %v", d)
	}
}

// In net/http, Shutdown does not wait for hijacked connections.
func TestShutdownWaitsForHijackedConnections(t *testing.T) {
	waits := func(k kind) (d time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			told := newEvent()
			srv := k.make(&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				nc, _, err := w.(http.Hijacker).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				go func() {
					defer nc.Close()
					<-told.c
					time.Sleep(3 * time.Second)
					io.WriteString(nc, "bye")
				}()
			})})
			srv.RegisterOnShutdown(told.fire)
			ln := newPipeListener()
			served := serving(srv, ln)
			nc := ln.dial()
			go io.WriteString(nc, get("/"))
			synctest.Wait()
			said := reading(nc)
			start := time.Now()
			if err := srv.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			d = time.Since(start)
			if s := <-said; s != "bye" {
				t.Errorf("client read %q", s)
			}
			<-served
		})
		return d
	}
	if d := waits(plainKind); d != 0 {
		t.Errorf("net/http waits %v", d)
	}
	if d := waits(graceKind); d != 3*time.Second {
		t.Errorf("waits %v", d)
	}
}

// Connections that the kernel has completed, and nobody has accepted, are
// reset when the last descriptor of the socket closes.
func TestConnectionsInTheAcceptQueueAreServed(t *testing.T) {
	const clients = 20
	lost := func(k kind) (n int) {
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln := &gatedListener{TCPListener: inner.(*net.TCPListener), open: make(chan struct{})}
		srv := k.make(&http.Server{Handler: http.HandlerFunc(hello)})
		served := serving(srv, ln)
		var cs []*client
		for range clients {
			nc, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			cs = append(cs, newClient(t, nc))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began := newEvent()
		srv.RegisterOnShutdown(began.fire)
		done := make(chan error, 1)
		go func() { done <- srv.Shutdown(ctx) }()
		<-began.c
		close(ln.open)
		for _, c := range cs {
			if c.get("/") != nil {
				n++
			}
			c.nc.Close()
		}
		<-done
		<-served
		return n
	}
	if n := lost(plainKind); n != clients {
		t.Errorf("net/http lost %d of %d", n, clients)
	}
	if n := lost(graceKind); n != 0 {
		t.Errorf("lost %d of %d", n, clients)
	}
}
