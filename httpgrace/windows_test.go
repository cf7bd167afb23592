package httpgrace

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// A window is a moment at which http.Server.Shutdown loses a request. run
// returns the error that the client sees.
type window struct {
	name    string
	tls     bool
	spy     bool
	handler func(release chan struct{}) http.HandlerFunc
	run     func(w *windowRun) error
}

type windowRun struct {
	*rig
	plain   bool
	release chan struct{}
}

// shutdown begins and, in net/http, waits for what it does at once to the
// connection that is idle.
func (w *windowRun) shutdownIdle() {
	w.waitState(http.StateIdle)
	w.shutdown(10 * time.Second)
	if w.plain {
		w.waitState(http.StateClosed)
	}
}

const half = len("GET / HTT")

var windows = []window{
	{name: "W1 request on a new connection", run: func(w *windowRun) error {
		c := w.dial()
		w.shutdown(10 * time.Second)
		return c.get("/")
	}},
	{name: "W2 request on an idle connection", run: func(w *windowRun) error {
		c := w.dial()
		c.ask(get("/1"))
		w.shutdownIdle()
		return c.get("/2")
	}},
	{name: "W2 POST on an idle connection", run: func(w *windowRun) error {
		c := w.dial()
		c.ask(post("/1", "a"))
		w.shutdownIdle()
		if err := c.send(post("/2", "b")); err != nil {
			return err
		}
		_, _, err := c.answer()
		return err
	}},
	{name: "W3 header partly received, idle connection", spy: true, run: func(w *windowRun) error {
		c := w.dial()
		c.ask(get("/"))
		w.reads(len(get("/")))
		c.send(get("/")[:half])
		w.reads(half)
		w.shutdownIdle()
		if err := c.send(get("/")[half:]); err != nil {
			return err
		}
		_, _, err := c.answer()
		return err
	}},
	{name: "W3 header partly received, new connection", spy: true, run: func(w *windowRun) error {
		c := w.dial()
		c.send(get("/")[:half])
		w.reads(half)
		w.shutdown(10 * time.Second)
		if err := c.send(get("/")[half:]); err != nil {
			return err
		}
		_, _, err := c.answer()
		return err
	}},
	{
		name: "W3c request in the socket, not read yet", spy: true, handler: waiting,
		run: func(w *windowRun) error {
			c := w.dial()
			c.send(get("/wait"))
			<-w.started // reading the header
			<-w.started // reading in the background while the handler runs
			w.hold <- struct{}{}
			close(w.release)
			if _, _, err := c.answer(); err != nil {
				return err
			}
			w.waitState(http.StateIdle)
			if err := c.send(get("/")); err != nil {
				return err
			}
			w.shutdown(10 * time.Second)
			if w.plain {
				<-w.done
			}
			<-w.hold
			_, _, err := c.answer()
			return err
		},
	},
	{
		name: "W4 request after a response that did not announce the close", handler: waiting,
		run: func(w *windowRun) error {
			c := w.dial()
			c.send(get("/wait"))
			w.waitState(http.StateActive)
			if _, err := c.br.Peek(1); err != nil { // the header is on its way
				return err
			}
			w.shutdown(10 * time.Second)
			close(w.release)
			if _, _, err := c.answer(); err != nil {
				return err
			}
			return c.get("/")
		},
	},
	{
		name: "W4 response of 200 kB, with a request behind the one it answers",
		handler: func(release chan struct{}) http.HandlerFunc {
			return func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/big" {
					return
				}
				rw.Header().Set("Content-Length", "200000")
				http.NewResponseController(rw).Flush()
				<-release
				rw.Write(make([]byte, 200000))
			}
		},
		run: func(w *windowRun) error {
			c := w.dial()
			tcp, ok := c.nc.(*net.TCPConn)
			if ok {
				tcp.SetReadBuffer(16 << 10)
			}
			c.send(get("/big"))
			w.waitState(http.StateActive)
			if _, err := c.br.Peek(1); err != nil {
				return err
			}
			w.shutdown(10 * time.Second)
			c.send(get("/next"))
			close(w.release)
			if w.plain {
				w.waitState(http.StateClosed)
			}
			if _, _, err := c.answer(); err != nil {
				return err
			}
			_, _, err := c.answer()
			return err
		},
	},
	{name: "TLS handshake not begun", tls: true, run: func(w *windowRun) error {
		nc := w.dialRaw()
		w.waitState(http.StateNew)
		w.shutdown(10 * time.Second)
		return newClient(w.t, tls.Client(nc, w.rig.tls)).get("/")
	}},
	{name: "TLS handshake partly received", tls: true, spy: true, run: func(w *windowRun) error {
		nc := w.dialRaw()
		w.waitState(http.StateNew)
		pausing := &pausingConn{Conn: nc, after: 100, paused: make(chan struct{}), resume: make(chan struct{})}
		result := make(chan error, 1)
		go func() { result <- newClient(w.t, tls.Client(pausing, w.rig.tls)).get("/") }()
		<-pausing.paused
		w.reads(100)
		w.shutdown(10 * time.Second)
		close(pausing.resume)
		return <-result
	}},
	{name: "TLS handshake complete, nothing asked", tls: true, run: func(w *windowRun) error {
		c := w.dial()
		w.shutdown(10 * time.Second)
		return c.get("/")
	}},
	{name: "TLS idle connection", tls: true, run: func(w *windowRun) error {
		c := w.dial()
		c.ask(post("/1", "a"))
		w.shutdownIdle()
		return c.get("/2")
	}},
	{name: "TLS header partly received", tls: true, spy: true, run: func(w *windowRun) error {
		c := w.dial()
		c.ask(get("/"))
		w.waitState(http.StateIdle)
		for len(w.read) > 0 {
			<-w.read
		}
		c.send(get("/")[:half])
		<-w.read
		w.shutdown(10 * time.Second)
		if w.plain {
			w.waitState(http.StateClosed)
		}
		if err := c.send(get("/")[half:]); err != nil {
			return err
		}
		_, _, err := c.answer()
		return err
	}},
}

// waiting flushes the header, and for /wait is released by the test.
func waiting(release chan struct{}) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		http.NewResponseController(rw).Flush()
		if r.URL.Path == "/wait" {
			<-release
		}
	}
}

// pausingConn stops in the middle of a Write.
type pausingConn struct {
	net.Conn
	after          int
	paused, resume chan struct{}
}

func (c *pausingConn) Write(p []byte) (int, error) {
	if c.after == 0 {
		return c.Conn.Write(p)
	}
	n, err := c.Conn.Write(p[:c.after])
	p, c.after = p[c.after:], 0
	if err != nil {
		return n, err
	}
	close(c.paused)
	<-c.resume
	m, err := c.Conn.Write(p)
	return n + m, err
}

// Every window is shown twice: if net/http lost nothing there, the test would
// show nothing.
func TestNothingIsLostInTheWindowsOfShutdown(t *testing.T) {
	for _, w := range windows {
		t.Run(w.name, func(t *testing.T) {
			for _, k := range kinds {
				t.Run(k.name, func(t *testing.T) {
					run := &windowRun{plain: k.name == plainKind.name, release: make(chan struct{})}
					o := rigOptions{kind: k, tls: w.tls, spy: w.spy}
					if w.handler != nil {
						o.handler = w.handler(run.release)
					}
					run.rig = startRig(t, o)
					switch err := w.run(run); {
					case run.plain && err == nil:
						t.Error("net/http loses nothing here: the test proves nothing")
					case !run.plain && err != nil:
						t.Errorf("lost: %v", err)
					case !run.plain:
						if st := run.grace().Stats(); st.Late != 0 || st.Forced != 0 {
							t.Errorf("%+v", st)
						}
					}
				})
			}
		})
	}
}

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

func serving(srv server, ln net.Listener) chan error {
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	return served
}

func answering(c *client) chan error {
	answered := make(chan error, 1)
	go func() {
		answered <- c.get("/")
		c.nc.Close()
	}()
	return answered
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

func reading(nc net.Conn) chan string {
	said := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(nc)
		said <- string(b)
	}()
	return said
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

// gatedListener accepts nothing until it is opened.
type gatedListener struct {
	*net.TCPListener
	open chan struct{}
}

func (l *gatedListener) Accept() (net.Conn, error) {
	<-l.open
	return l.TCPListener.Accept()
}

type event struct {
	c    chan struct{}
	fire func()
}

func newEvent() event {
	c := make(chan struct{})
	return event{c, func() { close(c) }}
}

// pipeListener is a listener of in-memory connections, for virtual time.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{make(chan net.Conn), make(chan struct{})}
}

func (l *pipeListener) dial() net.Conn {
	here, there := net.Pipe()
	l.conns <- there
	return here
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	close(l.done)
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }
