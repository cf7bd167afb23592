package httpgrace

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// virtual runs f in a bubble with a server on in-memory connections.
func virtual(t *testing.T, srv *Server, f func(*bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if srv.Server == nil {
			srv.Server = &http.Server{Handler: http.HandlerFunc(sleepy)}
		}
		b := &bench{T: t, srv: srv, ln: newPipeListener()}
		b.served = serving(srv, b.ln)
		f(b)
		srv.Close()
		if err := <-b.served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
}

// sleepy takes as long as the path says.
func sleepy(w http.ResponseWriter, r *http.Request) {
	if d, err := time.ParseDuration(r.URL.Path[1:]); err == nil {
		time.Sleep(d)
	}
	io.WriteString(w, "ok")
}

// A bench is a server in a bubble of virtual time.
type bench struct {
	*testing.T
	srv    *Server
	ln     *pipeListener
	served chan error
}

func (b *bench) dial() *client { return newClient(b.T, b.ln.dial()) }

// idle returns a client whose connection is idle.
func (b *bench) idle() *client {
	b.Helper()
	c := b.dial()
	c.ask(get("/"))
	synctest.Wait()
	return c
}

// shutdown returns how long Shutdown took, and its error.
func (b *bench) shutdown(limit time.Duration) (time.Duration, error) {
	ctx := context.Background()
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	start := time.Now()
	err := b.srv.Shutdown(ctx)
	return time.Since(start), err
}

func (b *bench) want(want Stats) {
	b.Helper()
	synctest.Wait()
	if st := b.srv.Stats(); st != want {
		b.Errorf("%+v, want %+v", st, want)
	}
}

func TestIdleConnectionWaitsForOneMoreRequest(t *testing.T) {
	virtual(t, &Server{IdleWait: time.Second}, func(b *bench) {
		c, silent := b.idle(), b.idle()
		defer silent.nc.Close()
		go func() {
			time.Sleep(999 * time.Millisecond)
			if _, closes := c.ask(get("/")); !closes {
				b.Error("the close was not announced")
			}
			c.nc.Close()
		}()
		if d, err := b.shutdown(0); err != nil || d != time.Second+lookTime {
			b.Errorf("%v after %v", err, d)
		}
		b.want(Stats{ClosedIdle: 1})
	})
}

// The wait begins when the connection becomes idle.
func TestIdleWaitBeginsAfterTheRequestInFlight(t *testing.T) {
	virtual(t, &Server{IdleWait: time.Second}, func(b *bench) {
		c := b.dial()
		answered := make(chan error, 1)
		go func() { answered <- c.get("/10s") }()
		synctest.Wait()
		if d, err := b.shutdown(0); err != nil || d != 11*time.Second+lookTime {
			b.Errorf("%v after %v", err, d)
		}
		if err := <-answered; err != nil {
			b.Error(err)
		}
		b.want(Stats{ClosedIdle: 1})
		c.nc.Close()
	})
}

// Without IdleWait, idle connections stay until there is just the time left to
// close them gently.
func TestIdleConnectionsAreClosedBeforeTheDeadline(t *testing.T) {
	virtual(t, &Server{}, func(b *bench) {
		c := b.idle()
		defer c.nc.Close()
		if d, err := b.shutdown(10 * time.Second); err != nil || d != 9*time.Second+lookTime {
			b.Errorf("%v after %v", err, d)
		}
		b.want(Stats{ClosedIdle: 1})
	})
}

func TestHandlerThatHangsCannotHoldShutdown(t *testing.T) {
	release := make(chan struct{})
	srv := &Server{Server: &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		<-release
	})}}
	synctest.Test(t, func(t *testing.T) {
		release = make(chan struct{})
		ln := newPipeListener()
		served := serving(srv, ln)
		c := newClient(t, ln.dial())
		go c.get("/")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		err := srv.Shutdown(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) || time.Since(start) != 3*time.Second {
			t.Errorf("Serve: %v after %v", err, time.Since(start))
		}
		if st := srv.Stats(); st.Forced != (Conns{Active: 1}) || st.Active != 1 {
			t.Errorf("%+v", st)
		}
		close(release)
		synctest.Wait()
	})
	if st := srv.Stats(); st != (Stats{Forced: Conns{Active: 1}}) {
		t.Errorf("%+v", st)
	}
}

// Whatever a handler does, ServeUntil returns at DrainTimeout, and says what was
// cut.
func TestNoHandlerHoldsTheProcessBeyondDrainTimeout(t *testing.T) {
	release := make(chan struct{})
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		http2   bool
		err     string // empty: it ends by itself
	}{
		"panics": {handler: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		"hangs":  {handler: func(http.ResponseWriter, *http.Request) { <-release }, err: "1 active"},
		"hangs in HTTP/2": {
			handler: func(http.ResponseWriter, *http.Request) { <-release }, http2: true, err: "1 active",
		},
		"sends for ever": {handler: func(w http.ResponseWriter, _ *http.Request) {
			for http.NewResponseController(w).Flush() == nil {
				io.WriteString(w, "more\n")
				time.Sleep(time.Second)
			}
		}, err: "1 active"},
		"hijacks and ignores everything": {handler: func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Hijacker).Hijack()
			<-release
		}, err: "1 hijacked"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release = make(chan struct{})
				srv := &Server{Server: &http.Server{Handler: test.handler, Protocols: protocol{http1: true, h2c: true}.spoken()}, DrainTimeout: 7 * time.Second}
				ln, done := newPipeListener(), make(chan struct{})
				served := make(chan error, 1)
				go func() { served <- srv.ServeUntil(done, ln) }()
				nc := ln.dial()
				go io.Copy(io.Discard, nc)
				if test.http2 {
					io.WriteString(nc, clientPreface+emptySettings+headersFrame(1))
				} else {
					io.WriteString(nc, get("/"))
				}
				synctest.Wait()
				start := time.Now()
				close(done)
				err := <-served
				want := 7 * time.Second
				if test.err == "" {
					want = 0
				}
				if d := time.Since(start); d != want {
					t.Errorf("after %v, want %v", d, want)
				}
				if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
					t.Errorf("%v, want %q", err, test.err)
				}
				close(release)
				nc.Close()
				time.Sleep(time.Minute) // for handlers to notice
			})
		})
	}
}

// Every second one is handed over. A bubble of virtual time does not end before
// its last goroutine has.
func TestTenThousandConnectionsDrain(t *testing.T) {
	const conns = 10_000
	succeed(t, func(s *succession) {
		s.old.IdleWait = time.Second
		s.old.KeepConn = func(nc net.Conn) bool { return nc.(interface{ NetConn() net.Conn }).NetConn().(*deed).n%2 == 0 }
	}, func(s *succession) {
		clients := make([]*client, conns)
		for i := range clients {
			clients[i] = newClient(s.T, s.from.dial())
			clients[i].ask(get("/"))
		}
		s.shutdown()
		s.want(Stats{HandedOver: conns / 2, ClosedIdle: conns / 2}, Stats{Conns: idles(conns / 2), Adopted: conns / 2})
		for _, c := range clients {
			c.nc.Close()
		}
		s.want(Stats{HandedOver: conns / 2, ClosedIdle: conns / 2}, Stats{Adopted: conns / 2})
	})
}

// What has begun is not cut before the limit, and then it is counted.
func TestRequestHalfReadIsKeptUntilTheLimit(t *testing.T) {
	virtual(t, &Server{IdleWait: time.Millisecond}, func(b *bench) {
		c := b.idle()
		c.send("GET")
		synctest.Wait()
		if d, err := b.shutdown(10 * time.Second); !errors.Is(err, context.DeadlineExceeded) || d != 10*time.Second {
			b.Errorf("%v after %v", err, d)
		}
		b.want(Stats{Forced: Conns{Active: 1}})
	})
}

func TestCancelledShutdownReturnsAtOnce(t *testing.T) {
	virtual(t, &Server{}, func(b *bench) {
		b.idle()
		ctx, cancel := context.WithCancel(b.Context())
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		if err := b.srv.Shutdown(ctx); !errors.Is(err, context.Canceled) || time.Since(start) != time.Second {
			b.Errorf("%v after %v", err, time.Since(start))
		}
		b.want(Stats{Forced: Conns{Idle: 1}})
	})
}

func TestHurryClosesIdleConnectionsAndLimitsTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hurry, done := make(chan struct{}), make(chan struct{})
		srv := &Server{Server: &http.Server{Handler: http.HandlerFunc(sleepy)}, Hurry: hurry}
		ln := newPipeListener()
		served := make(chan error, 1)
		start := time.Now()
		go func() { served <- srv.ServeUntil(done, ln) }()
		idle, quick, slow := newClient(t, ln.dial()), newClient(t, ln.dial()), newClient(t, ln.dial())
		idle.ask(get("/"))
		gone := make(chan time.Duration, 1)
		go func() {
			idle.ends()
			gone <- time.Since(start)
		}()
		answered := make(chan error, 1)
		go func() {
			answered <- quick.get("/12s")
			quick.nc.Close()
		}()
		go slow.get("/30s")
		synctest.Wait()

		close(done)
		time.Sleep(10 * time.Second)
		close(hurry)
		err := <-served
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 active") {
			t.Errorf("ServeUntil: %v", err)
		}
		if d := time.Since(start); d != 15*time.Second {
			t.Errorf("hurried for %v", d-10*time.Second)
		}
		if d := <-gone; d != 10*time.Second+lookTime {
			t.Errorf("idle connection closed after %v", d)
		}
		if err := <-answered; err != nil {
			t.Errorf("request that takes two more seconds: %v", err)
		}
		time.Sleep(time.Minute)
		if st := srv.Stats(); st != (Stats{ClosedIdle: 1, Forced: Conns{Active: 1}}) {
			t.Errorf("%+v", st)
		}
	})
}

func TestServeUntilReturnsTheFailureOfAListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &Server{Server: &http.Server{Handler: http.HandlerFunc(sleepy)}}
		good, bad := newPipeListener(), &failingListener{pipeListener: newPipeListener(), err: make(chan error, 1)}
		done := make(chan error, 1)
		go func() { done <- srv.ServeUntil(nil, good, bad) }()
		c := newClient(t, good.dial())
		answered := answering(c)
		synctest.Wait()
		failure := errors.New("the cable is cut")
		bad.err <- failure
		if err := <-done; !errors.Is(err, failure) {
			t.Errorf("ServeUntil: %v", err)
		}
		if err := <-answered; err != nil {
			t.Errorf("request in flight: %v", err)
		}
	})
}

type failingListener struct {
	*pipeListener
	err chan error
}

func (l *failingListener) Accept() (net.Conn, error) {
	select {
	case err := <-l.err:
		return nil, err
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func TestDrainingTellsHandlers(t *testing.T) {
	virtual(t, &Server{Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-Draining(r.Context())
		io.WriteString(w, "it is time")
	})}}, func(b *bench) {
		c := b.dial()
		body := make(chan string, 1)
		go func() {
			s, _ := c.ask(get("/"))
			c.nc.Close()
			body <- s
		}()
		synctest.Wait()
		if d, err := b.shutdown(time.Minute); err != nil || d != 0 {
			b.Errorf("%v after %v", err, d)
		}
		if s := <-body; s != "it is time" {
			b.Error(s)
		}
	})
	if Draining(t.Context()) != nil {
		t.Error("a context of nobody's request is told something")
	}
}

// The limits of net/http are kept.
func TestIdleTimeoutEndsTheWait(t *testing.T) {
	srv := &Server{Server: &http.Server{Handler: http.HandlerFunc(sleepy), IdleTimeout: 2 * time.Second}, IdleWait: time.Minute}
	virtual(t, srv, func(b *bench) {
		c := b.idle()
		defer c.nc.Close()
		if d, err := b.shutdown(0); err != nil || d != 2*time.Second {
			b.Errorf("%v after %v", err, d)
		}
	})
}

func TestReadHeaderTimeoutEndsAHalfRequest(t *testing.T) {
	srv := &Server{Server: &http.Server{Handler: http.HandlerFunc(sleepy), ReadHeaderTimeout: 2 * time.Second}}
	virtual(t, srv, func(b *bench) {
		c := b.dial()
		c.send("GET / HT")
		go io.Copy(io.Discard, c.nc)
		synctest.Wait()
		if d, err := b.shutdown(time.Minute); err != nil || d != 2*time.Second {
			b.Errorf("%v after %v", err, d)
		}
	})
}

func TestSecondShutdownWaitsForTheFirst(t *testing.T) {
	virtual(t, &Server{IdleWait: 3 * time.Second}, func(b *bench) {
		b.idle()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if d, err := b.shutdown(0); err != nil || d != 3*time.Second+lookTime {
					b.Errorf("%v after %v", err, d)
				}
			})
		}
		wg.Wait()
		if d, err := b.shutdown(0); err != nil || d != 0 {
			b.Errorf("later: %v after %v", err, d)
		}
	})
}

func TestCloseEndsShutdown(t *testing.T) {
	virtual(t, &Server{}, func(b *bench) {
		b.idle()
		shut := make(chan error, 1)
		go func() { shut <- b.srv.Shutdown(b.Context()) }()
		synctest.Wait()
		if err := b.srv.Close(); err != nil {
			b.Error(err)
		}
		if err := <-shut; !errors.Is(err, http.ErrServerClosed) {
			b.Error(err)
		}
		b.want(Stats{Forced: Conns{Idle: 1}})
		if err := b.srv.Serve(newPipeListener()); !errors.Is(err, http.ErrServerClosed) {
			b.Errorf("Serve after Close: %v", err)
		}
		if err := b.srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			b.Errorf("ListenAndServe after Close: %v", err)
		}
	})
}

func TestShutdownBeforeServe(t *testing.T) {
	var srv Server
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	ln := newPipeListener()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	<-ln.done // closed, as net/http does
}
