package httpgrace

import (
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// net/http is watched, not trusted. One that reads otherwise turns the hand-over
// off, and says so once.
func TestProbe(t *testing.T) {
	serve := func(hs *http.Server, ln net.Listener) error { return hs.Serve(ln) }
	if err := probe(serve); err != nil {
		t.Fatalf("the net/http of this Go: %v", err)
	}
	for name, change := range map[string]func(net.Conn) net.Conn{
		"whole buffer at all times":   func(nc net.Conn) net.Conn { return &roomy{nc} },
		"never the whole buffer":      func(nc net.Conn) net.Conn { return &narrow{Conn: nc} },
		"no deadline before it waits": func(nc net.Conn) net.Conn { return &undated{nc} },
		"one more deadline":           func(nc net.Conn) net.Conn { return &dated{nc} },
	} {
		t.Run(name, func(t *testing.T) {
			err := probe(func(hs *http.Server, ln net.Listener) error {
				return hs.Serve(changedListener{ln, change})
			})
			if err == nil {
				t.Fatal("nothing is noticed")
			}
			t.Log(err)
		})
	}
	t.Run("one that does not serve", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			err := probe(func(_ *http.Server, ln net.Listener) error {
				_, err := ln.Accept()
				return err
			})
			if err == nil || !strings.Contains(err.Error(), "does not wait") {
				t.Error(err)
			}
		})
	})
}

func TestProbeThatFailsTurnsTheHandOverOff(t *testing.T) {
	succeed(t, func(s *succession) {
		s.old.probe.Do(func() { s.old.logf("it reads in another way") })
	}, func(s *succession) {
		c := s.dial()
		s.asks(c, get("/1"), "old /1")
		took := s.shuttingDown()
		if _, closes := c.ask(get("/2")); !closes {
			s.Error("the close is not announced")
		}
		c.nc.Close()
		<-took
		s.want(Stats{}, Stats{})
	})
}

type changedListener struct {
	net.Listener
	change func(net.Conn) net.Conn
}

func (l changedListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.change(nc), nil
}

// roomy is net/http with a buffer of its own for each read.
type roomy struct{ net.Conn }

func (c *roomy) Read(p []byte) (int, error) {
	if len(p) == 1 {
		return c.Conn.Read(p)
	}
	buf := make([]byte, 4096)
	n, err := c.Conn.Read(buf)
	return copy(p, buf[:n]), err
}

// narrow is net/http with a buffer that is never empty again.
type narrow struct {
	net.Conn
	begun bool
}

func (c *narrow) Read(p []byte) (int, error) {
	if c.begun && len(p) > 1 {
		p = p[1:]
	}
	c.begun = true
	return c.Conn.Read(p)
}

type undated struct{ net.Conn }

func (c *undated) SetReadDeadline(t time.Time) error {
	if t.IsZero() {
		return nil
	}
	return c.Conn.SetReadDeadline(t)
}

type dated struct{ net.Conn }

func (c *dated) SetReadDeadline(t time.Time) error {
	return errors.Join(c.Conn.SetReadDeadline(t), c.Conn.SetReadDeadline(t))
}
