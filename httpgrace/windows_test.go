package httpgrace

import (
	"crypto/tls"
	"net"
	"net/http"
	"testing"
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
						if st := run.grace().Stats(); st.Late != 0 || st.Forced.Total() != 0 {
							t.Errorf("%+v", st)
						}
					}
				})
			}
		})
	}
}
