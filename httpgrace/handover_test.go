package httpgrace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// An estate is a listener of in-memory connections that hands them over to the
// listener of another server, as upgrader's does to another process.
type estate struct {
	*pipeListener
	heir    *estate // nil: nobody takes them
	refusal error   // the heir says this
	stops   bool    // nobody accepts in its place
	hangs   chan struct{}

	mu       sync.Mutex
	accepted int
	adopted  map[net.Conn]bool
}

func newEstate(heir *estate) *estate {
	return &estate{pipeListener: newPipeListener(), heir: heir, adopted: map[net.Conn]bool{}}
}

func (l *estate) Accept() (net.Conn, error) {
	nc, err := l.pipeListener.Accept()
	if err != nil {
		return nil, err
	}
	d, ok := nc.(*deed)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !ok {
		l.accepted++
		return &deed{Conn: nc, n: l.accepted}, nil
	}
	l.adopted[d] = true
	return d, nil
}

func (l *estate) HandOver(nc net.Conn) error {
	d, ok := nc.(*deed)
	switch {
	case !ok:
		return fmt.Errorf("a %T is not what Accept has returned", nc)
	case d.reading.Load():
		return errors.New("a Read is under way")
	case l.refusal != nil:
		return l.refusal
	case l.heir == nil:
		return errors.New("nobody is there")
	}
	if l.hangs != nil {
		<-l.hangs
	}
	d.SetDeadline(time.Time{}) // a deadline is not handed over
	d.gone.Store(true)
	l.heir.conns <- &deed{Conn: d.Conn}
	return nil
}

func (l *estate) Adopted(nc net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.adopted[nc]
}

func (l *estate) Replaced() bool { return !l.stops }

// A deed is one process's copy of a connection.
type deed struct {
	net.Conn
	n             int // so many were accepted before and with it
	gone, reading atomic.Bool
}

func (d *deed) Read(p []byte) (int, error) {
	if d.gone.Load() {
		return 0, net.ErrClosed
	}
	d.reading.Store(true)
	defer d.reading.Store(false)
	return d.Conn.Read(p)
}

func (d *deed) SetReadDeadline(t time.Time) error {
	if d.gone.Load() {
		return net.ErrClosed
	}
	return d.Conn.SetReadDeadline(t)
}

func (d *deed) Close() error {
	if d.gone.Load() {
		return net.ErrClosed
	}
	return d.Conn.Close()
}

// A succession is two servers in a bubble, of which the second takes over what
// the first hands over. Each answers with its name.
type succession struct {
	*testing.T
	old, new        *Server
	from, to        *estate
	logged          bytes.Buffer // of the old one
	served, served2 chan error
}

func named(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if d, err := time.ParseDuration(r.URL.Path[1:]); err == nil {
			time.Sleep(d)
		}
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s%s", name, r.URL.Path, body)
		if err != nil {
			fmt.Fprint(w, err)
		}
	}
}

// succeed runs f. edit may change both servers, and the listeners, before.
func succeed(t *testing.T, edit func(*succession), f func(*succession)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &succession{T: t}
		s.to = newEstate(nil)
		s.from = newEstate(s.to)
		s.old = &Server{Server: &http.Server{Handler: named("old"), ErrorLog: log.New(&s.logged, "", 0)}}
		s.new = &Server{Server: &http.Server{Handler: named("new"), ErrorLog: log.New(io.Discard, "", 0)}}
		if edit != nil {
			edit(s)
		}
		s.served, s.served2 = serving(s.old, s.from), serving(s.new, s.to)
		f(s)
		s.old.Close()
		s.new.Close()
		<-s.served
		<-s.served2
	})
}

// dial returns a client of the old server.
func (s *succession) dial() *client {
	c := newClient(s.T, s.from.dial())
	synctest.Wait()
	return c
}

// asks wants this body, and no word of a close.
func (s *succession) asks(c *client, request, want string) {
	s.Helper()
	if body, closes := c.ask(request); body != want || closes {
		s.Errorf("%q, closes %v; want %q", body, closes, want)
	}
	synctest.Wait()
}

// shutdown drains the old server and returns how long that took.
func (s *succession) shutdown() time.Duration {
	s.Helper()
	start := time.Now()
	if err := s.old.Shutdown(s.Context()); err != nil {
		s.Errorf("Shutdown: %v", err)
	}
	return time.Since(start)
}

// shuttingDown begins the drain of the old server.
func (s *succession) shuttingDown() (took chan time.Duration) {
	took = make(chan time.Duration, 1)
	go func() { took <- s.shutdown() }()
	synctest.Wait()
	return took
}

func (s *succession) want(old, next Stats) {
	s.Helper()
	synctest.Wait()
	if st := s.old.Stats(); st != old {
		s.Errorf("old: %+v, want %+v", st, old)
	}
	if st := s.new.Stats(); st != next {
		s.Errorf("new: %+v, want %+v", st, next)
	}
}

func idles(n int) Conns { return Conns{Idle: n} }

func TestIdleConnectionIsHandedOver(t *testing.T) {
	succeed(t, nil, func(s *succession) {
		c := s.dial()
		s.asks(c, post("/1", "a"), "old /1a")
		if d := s.shutdown(); d != 0 {
			s.Errorf("took %v", d)
		}
		s.want(Stats{HandedOver: 1}, Stats{Conns: idles(1), Adopted: 1})
		s.asks(c, post("/2", "b"), "new /2b")
		s.asks(c, get("/3"), "new /3")
	})
}

func TestConnectionThatHasNotAskedIsHandedOver(t *testing.T) {
	succeed(t, nil, func(s *succession) {
		c := s.dial()
		s.shutdown()
		s.want(Stats{HandedOver: 1}, Stats{Conns: idles(1), Adopted: 1})
		s.asks(c, get("/"), "new /")
	})
}

func TestBusyConnectionIsHandedOverAfterItsAnswer(t *testing.T) {
	succeed(t, nil, func(s *succession) {
		c := s.dial()
		go c.send(get("/10s"))
		synctest.Wait()
		took := s.shuttingDown()
		s.want(Stats{Conns: Conns{Active: 1}}, Stats{})
		if body, closes, err := c.answer(); body != "old /10s" || closes || err != nil {
			s.Errorf("%q, closes %v, %v", body, closes, err)
		}
		if d := <-took; d != 10*time.Second {
			s.Errorf("took %v", d)
		}
		s.asks(c, get("/"), "new /")
	})
}

// A request that begins in the drain, on a connection that has not been at rest
// yet, announces no close either.
func TestPipelinedRequestsAreAnsweredBeforeTheHandOver(t *testing.T) {
	succeed(t, nil, func(s *succession) {
		c := s.dial()
		go c.send(get("/1s") + get("/2") + post("/3", "x"))
		synctest.Wait()
		took := s.shuttingDown()
		for _, want := range []string{"old /1s", "old /2", "old /3x"} {
			if body, closes, err := c.answer(); body != want || closes || err != nil {
				s.Errorf("%q, closes %v, %v; want %q", body, closes, err, want)
			}
		}
		<-took
		s.want(Stats{HandedOver: 1}, Stats{Conns: idles(1), Adopted: 1})
		s.asks(c, get("/4"), "new /4")
	})
}

// However much of a request has been read: if it is something, this process
// answers it, and the connection goes afterwards.
func TestConnectionIsHandedOverOnlyIfNothingWasRead(t *testing.T) {
	const next = "POST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok"
	for _, pipelined := range []bool{true, false} {
		for k := range len(next) + 1 {
			succeed(t, nil, func(s *succession) {
				c := s.dial()
				if pipelined {
					go c.send(get("/1") + next[:k])
					if _, _, err := c.answer(); err != nil {
						s.Error(err)
					}
				} else {
					s.asks(c, get("/1"), "old /1")
					go c.send(next[:k])
				}
				if k == len(next) {
					if body, _, err := c.answer(); body != "old /2ok" || err != nil {
						s.Errorf("%q, %v", body, err)
					}
				}
				synctest.Wait()
				took := s.shuttingDown()
				if k > 0 && k < len(next) {
					if st := s.old.Stats(); st.Total() != 1 || st.HandedOver != 0 {
						s.Errorf("%+v", st)
					}
					s.asks(c, next[k:], "old /2ok")
				}
				if d := <-took; d != 0 {
					s.Errorf("took %v", d)
				}
				s.want(Stats{HandedOver: 1}, Stats{Conns: idles(1), Adopted: 1})
				s.asks(c, get("/3"), "new /3")
			})
			if t.Failed() {
				t.Fatalf("pipelined %v, cut at %q", pipelined, next[:k])
			}
		}
	}
}

// One process may read from a connection, and the other knows that it may not.
func TestConnectionThatIsRefusedStays(t *testing.T) {
	refused := errors.New("at its limit")
	succeed(t, func(s *succession) { s.from.refusal = refused }, func(s *succession) {
		a, b := s.dial(), s.dial()
		s.asks(a, get("/1"), "old /1")
		took := s.shuttingDown()
		s.want(Stats{Conns: Conns{New: 1, Idle: 1}}, Stats{})
		for _, c := range []*client{a, b} {
			if body, closes := c.ask(get("/2")); body != "old /2" || !closes {
				s.Errorf("%q, closes %v", body, closes)
			}
			c.nc.Close()
		}
		<-took
		s.want(Stats{}, Stats{})
		if got := s.logged.String(); strings.Count(got, refused.Error()) != 1 {
			s.Errorf("want one line for all of them:\n%s", got)
		}
	})
}

func TestKeepConnOptsOut(t *testing.T) {
	kept := make(map[string]bool)
	succeed(t, func(s *succession) {
		s.old.KeepConn = func(nc net.Conn) bool { return kept[nc.RemoteAddr().String()] || len(kept) == 1 }
	}, func(s *succession) {
		c := s.dial()
		s.asks(c, get("/1"), "old /1")
		kept["it"] = true
		took := s.shuttingDown()
		if body, closes := c.ask(get("/2")); body != "old /2" || !closes {
			s.Errorf("%q, closes %v", body, closes)
		}
		c.nc.Close()
		<-took
		s.want(Stats{}, Stats{})
	})
}

// A service that stops has nobody to hand over to: nobody is asked.
func TestStopHandsNothingOver(t *testing.T) {
	succeed(t, func(s *succession) { s.from.stops = true }, func(s *succession) {
		c := s.dial()
		s.asks(c, get("/1"), "old /1")
		took := s.shuttingDown()
		if body, closes := c.ask(get("/2")); body != "old /2" || !closes {
			s.Errorf("%q, closes %v", body, closes)
		}
		c.nc.Close()
		<-took
		s.want(Stats{}, Stats{})
		if s.logged.Len() > 0 {
			s.Error(s.logged.String())
		}
	})
}

// HandOver is all that a listener needs.
func TestListenerThatOnlyHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := newEstate(nil)
		from := newEstate(to)
		old := &Server{Server: &http.Server{Handler: named("old")}}
		next := &Server{Server: &http.Server{Handler: named("new")}}
		served := serving(old, struct {
			net.Listener
			heir
		}{from, from})
		served2 := serving(next, struct{ net.Listener }{to})
		c := newClient(t, from.dial())
		c.ask(get("/"))
		synctest.Wait()
		if err := old.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		<-served
		if body, _ := c.ask(get("/")); body != "new /" {
			t.Error(body)
		}
		if st := next.Stats(); st.Adopted != 0 { // it is not told
			t.Errorf("%+v", st)
		}
		next.Close()
		<-served2
	})
}

// A generation that drains itself passes on what it is given.
func TestAdoptedConnectionIsPassedOn(t *testing.T) {
	succeed(t, nil, func(s *succession) {
		third := newEstate(nil)
		s.to.heir = third
		last := &Server{Server: &http.Server{Handler: named("third")}}
		served := serving(last, third)
		unused, used := s.dial(), s.dial()
		s.shutdown()
		s.asks(used, get("/1"), "new /1")
		if err := s.new.Shutdown(s.Context()); err != nil {
			s.Error(err)
		}
		s.want(Stats{HandedOver: 2}, Stats{Adopted: 2, HandedOver: 2})
		s.asks(unused, get("/2"), "third /2")
		s.asks(used, get("/2"), "third /2")
		last.Close()
		<-served
	})
}

// An empty line behind a request's body belongs to that request. Who has
// answered it is not who reads on.
func TestAdoptedConnectionMayBeginWithAnEmptyLine(t *testing.T) {
	for _, line := range []string{"\r\n", "\n", "\r\n\r\n"} {
		for cut := range len(line) + 1 {
			succeed(t, nil, func(s *succession) {
				c := s.dial()
				s.asks(c, post("/1", "a"), "old /1a")
				s.shutdown()
				go c.send(line[:cut])
				synctest.Wait()
				s.want(Stats{HandedOver: 1}, Stats{Conns: idles(1), Adopted: 1})
				s.asks(c, line[cut:]+get("/2"), "new /2")
				c.send(get("/3")[:5])
				s.asks(c, get("/3")[5:], "new /3")
			})
		}
	}
}

// closedAfter returns how long the new server keeps the connection.
func (s *succession) closedAfter(c *client) time.Duration {
	s.Helper()
	start := time.Now()
	io.Copy(io.Discard, c.nc)
	return time.Since(start)
}

// An adopted connection is an idle one, not a new one.
func TestTimeoutsOfAnAdoptedConnection(t *testing.T) {
	for _, test := range []struct {
		name   string
		server *http.Server
		say    string // when idle for 20 s; nothing: to be idle for ever
		closed time.Duration
	}{
		{name: "IdleTimeout", server: &http.Server{IdleTimeout: time.Minute, ReadHeaderTimeout: time.Second}, closed: time.Minute},
		{name: "ReadTimeout instead", server: &http.Server{ReadTimeout: time.Minute, ReadHeaderTimeout: time.Second}, closed: time.Minute},
		{name: "ReadHeaderTimeout", server: &http.Server{IdleTimeout: time.Minute, ReadHeaderTimeout: time.Second}, say: "GET", closed: time.Second},
		{name: "ReadTimeout instead of it", server: &http.Server{ReadTimeout: 25 * time.Second}, say: "GET", closed: 25 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			succeed(t, func(s *succession) {
				test.server.Handler = s.new.Handler
				s.new.Server = test.server
			}, func(s *succession) {
				c := s.dial()
				s.asks(c, get("/"), "old /")
				s.shutdown()
				if test.say != "" {
					time.Sleep(20 * time.Second)
					c.send(test.say)
				}
				if d := s.closedAfter(c); d != test.closed {
					s.Errorf("closed after %v, want %v", d, test.closed)
				}
			})
		})
	}
}

// ReadTimeout is the time of a request, which begins with its first byte.
func TestReadTimeoutOfAnAdoptedConnectionsRequest(t *testing.T) {
	succeed(t, func(s *succession) {
		s.new.ReadTimeout, s.new.IdleTimeout = 10*time.Second, time.Hour
	}, func(s *succession) {
		in, late := s.dial(), s.dial()
		s.shutdown()
		time.Sleep(30 * time.Second)
		whole := post("/", "abc")
		for _, c := range []*client{in, late} {
			c.send(whole[:len(whole)-1])
		}
		synctest.Wait()
		time.Sleep(9 * time.Second)
		s.asks(in, "c", "new /abc")
		time.Sleep(2 * time.Second)
		go late.send("c")
		if body, _, _ := late.answer(); body == "new /abc" {
			s.Error("ReadTimeout has no end")
		}
	})
}

// What has said nothing yet may turn out to be HTTP/2.
func TestAdoptedConnectionMayBeHTTP2(t *testing.T) {
	succeed(t, func(s *succession) {
		for _, srv := range []*Server{s.old, s.new} {
			srv.Protocols = protocol{http1: true, h2c: true}.spoken()
		}
	}, func(s *succession) {
		c := s.dial()
		s.shutdown()
		s.want(Stats{HandedOver: 1}, Stats{Conns: idles(1), Adopted: 1})
		h := speak(c)
		go c.send(clientPreface + emptySettings + headersFrame(1))
		h.waits("DATA 1")
		s.want(Stats{HandedOver: 1}, Stats{Conns: idles(1), Adopted: 1})
		c.nc.Close()
		synctest.Wait()
	})
}

func TestTLSIsNotHandedOver(t *testing.T) {
	cert, pool := testCertificate()
	succeed(t, func(s *succession) {
		for _, srv := range []*Server{s.old, s.new} {
			srv.TLSConfig = tlsConfig(cert)
		}
	}, func(s *succession) {
		tlsEstate := newEstate(s.to)
		served := make(chan error, 1)
		go func() { served <- s.old.ServeTLS(tlsEstate, "", "") }()
		c := newClient(s.T, tlsClient(tlsEstate.dial(), pool))
		s.asks(c, get("/1"), "old /1")
		took := s.shuttingDown()
		if body, closes := c.ask(get("/2")); body != "old /2" || !closes {
			s.Errorf("%q, closes %v", body, closes)
		}
		c.nc.Close()
		<-took
		<-served
		s.want(Stats{}, Stats{})
	})
}

// At the drain's limit a hand-over that hangs holds nothing up.
func TestHandOverThatHangsCannotHoldShutdown(t *testing.T) {
	succeed(t, func(s *succession) { s.from.hangs = make(chan struct{}) }, func(s *succession) {
		c := s.dial()
		defer c.nc.Close()
		ctx, cancel := context.WithTimeout(s.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		if err := s.old.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
			s.Errorf("%v after %v", err, time.Since(start))
		}
		close(s.from.hangs)
		synctest.Wait()
	})
}
