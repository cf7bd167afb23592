// Package fake is a control socket whose server does what a test says.
package fake

import (
	"encoding/json"
	"maps"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/go-handover/handover/internal/wire"
	"github.com/go-handover/handover/upgrader"
)

// Conn is the server's end of one request's connection.
type Conn struct {
	*wire.Conn
	Raw *net.UnixConn
	t   testing.TB
}

// Server answers each request with the function for its verb.
type Server struct {
	Path string

	t  testing.TB
	l  *net.UnixListener
	mu sync.Mutex
	do map[string]func(*Conn)
}

// Listen starts a server, which ends with the test. Without a function for it,
// a verb is never answered.
func Listen(t testing.TB, do map[string]func(*Conn)) *Server {
	t.Helper()
	s := &Server{Path: filepath.Join(t.TempDir(), "control"), t: t, do: map[string]func(*Conn){}}
	maps.Copy(s.do, do)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.Path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	s.l = l
	var attended sync.WaitGroup
	attended.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			attended.Go(func() { s.attend(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		attended.Wait()
	})
	return s
}

func (s *Server) attend(c *net.UnixConn) {
	defer c.Close()
	conn := &Conn{wire.NewConn(c), c, s.t}
	m, _, err := conn.Receive()
	if err != nil {
		return // it has thought better of it
	}
	r, ok := m.(wire.Request)
	if !ok || r.Version != wire.Version {
		s.t.Errorf("the server is sent %#v", m)
		return
	}
	s.mu.Lock()
	do := s.do[r.Verb]
	s.mu.Unlock()
	if do == nil {
		conn.UntilClosed()
		return
	}
	do(conn)
}

// On makes do answer verb from now on.
func (s *Server) On(verb string, do func(*Conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.do[verb] = do
}

// End closes the socket, as the end of the last process does.
func (s *Server) End() { s.l.Close() }

// Event sends one.
func (c *Conn) Event(e upgrader.Event) { c.notice(wire.Notice{Event: c.json(e)}) }

// Status sends one, as to who watches.
func (c *Conn) Status(s upgrader.Status) { c.notice(wire.Notice{Status: c.json(s)}) }

func (c *Conn) notice(n wire.Notice) {
	if err := c.Send(n); err != nil {
		c.t.Logf("the client has gone: %v", err)
	}
}

// Answer sends the last message.
func (c *Conn) Answer(result, text string, s upgrader.Status) {
	if err := c.Send(wire.Answer{Result: result, Text: text, Status: c.json(s)}); err != nil {
		c.t.Logf("the client has gone: %v", err)
	}
}

// UntilClosed returns when the client has closed its end.
func (c *Conn) UntilClosed() {
	for {
		if _, _, err := c.Receive(); err != nil {
			return
		}
	}
}

func (c *Conn) json(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		c.t.Error(err)
	}
	return b
}

// Answering is a function for a Server that answers at once.
func Answering(result, text string, s upgrader.Status) func(*Conn) {
	return func(c *Conn) { c.Answer(result, text, s) }
}
