package httpgrace

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

var generations = flag.Int("generations", 5, "how many servers replace each other in each load test")

type load struct {
	name string
	tls  bool
	ask  func(*loadClient) error
}

// Servers that share one socket replace each other, as processes do in an
// upgrade, under clients that never retry. A client that looks before it asks,
// and goes when it is told to, loses nothing.
func TestGenerationsUnderLoadLoseNothing(t *testing.T) {
	for _, l := range []load{
		{"new connection", false, (*loadClient).once},
		{"keep-alive GET", false, (*loadClient).get},
		{"keep-alive POST", false, (*loadClient).post},
		{"connect, wait, ask", false, (*loadClient).hesitate},
		{"byte by byte", false, (*loadClient).stutter},
		{"pipelined", false, (*loadClient).pipeline},
		{"new TLS connection", true, (*loadClient).once},
		{"keep-alive POST over TLS", true, (*loadClient).post},
		{"byte by byte over TLS", true, (*loadClient).stutter},
		{"pipelined over TLS", true, (*loadClient).pipeline},
	} {
		t.Run(l.name, func(t *testing.T) {
			for _, err := range runGenerations(t, graceKind, l) {
				t.Error(err)
			}
		})
	}
}

// The same shows something with net/http.
func TestGenerationsOfNetHTTPLoseRequests(t *testing.T) {
	lost := runGenerations(t, plainKind, load{"keep-alive POST", false, (*loadClient).post})
	if len(lost) == 0 {
		t.Error("nothing was lost")
	}
	t.Logf("%d requests were lost", len(lost))
}

// runGenerations serves one socket with one server after the other, and returns
// what clients complain of.
func runGenerations(t *testing.T, k kind, l load) (lost []error) {
	t.Helper()
	const clients, requestsEach = 16, 60
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()

	var asking, draining sync.WaitGroup
	stop := make(chan struct{})
	answers := make(chan error, clients*requestsEach)
	for range clients {
		asking.Go(func() {
			c := &loadClient{addr: socket.Addr().String(), tls: l.tls}
			defer c.close()
			for !closed(stop) {
				err := l.ask(c)
				if err != nil {
					c.close()
				}
				select {
				case answers <- err:
				case <-stop:
				}
			}
		})
	}
	end := startGeneration(t, k, l, socket, &draining)
	for range *generations {
		for range requestsEach {
			if err := <-answers; err != nil {
				lost = append(lost, err)
			}
		}
		next := startGeneration(t, k, l, socket, &draining)
		end()
		end = next
	}
	close(stop)
	asking.Wait()
	end()
	draining.Wait()
	for len(answers) > 0 {
		if err := <-answers; err != nil {
			lost = append(lost, err)
		}
	}
	return lost
}

// startGeneration serves socket until end is called, and then drains.
func startGeneration(t *testing.T, k kind, l load, socket net.Listener, draining *sync.WaitGroup) (end func()) {
	t.Helper()
	ln := duplicate(t, socket)
	hs := &http.Server{Handler: http.HandlerFunc(hello), ErrorLog: log.New(io.Discard, "", 0)}
	if l.tls {
		cert, _ := testCertificate()
		hs.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
	}
	srv := k.make(hs)
	serve := func() error { return srv.Serve(ln) }
	if l.tls {
		serve = func() error { return srv.ServeTLS(ln, "", "") }
	}
	draining.Go(func() {
		if err := serve(); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return func() {
		draining.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := srv.Shutdown(ctx); err != nil {
				t.Error(err)
			}
			if s, ok := srv.(*Server); ok {
				if st := s.Stats(); st.Late != 0 || st.Forced.Total() != 0 {
					t.Errorf("%+v", st)
				}
			}
		})
	}
}

func duplicate(t *testing.T, ln net.Listener) net.Listener {
	t.Helper()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dup, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	return dup
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

type loadClient struct {
	addr string
	tls  bool
	nc   net.Conn
	br   *bufio.Reader
	n    int
}

// connect makes a connection unless there is one that the server has not closed.
func (c *loadClient) connect() error {
	if c.nc != nil {
		c.nc.SetReadDeadline(time.Now().Add(100 * time.Microsecond))
		_, err := c.br.Peek(1)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.nc.SetReadDeadline(time.Now().Add(20 * time.Second))
			return nil
		}
		c.close()
		if !errors.Is(err, io.EOF) {
			return fmt.Errorf("idle connection: %w", err)
		}
	}
	nc, err := net.Dial("tcp", c.addr)
	if err != nil {
		return err
	}
	if c.tls {
		_, pool := testCertificate()
		nc = tls.Client(nc, &tls.Config{RootCAs: pool, ServerName: "localhost"})
	}
	nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	c.nc, c.br = nc, bufio.NewReader(nc)
	return nil
}

func (c *loadClient) close() {
	if c.nc != nil {
		c.nc.Close()
		c.nc = nil
	}
}

// request returns a request and the answer to it.
func (c *loadClient) request(body bool) (request, want string) {
	c.n++
	path := fmt.Sprintf("/%d", c.n)
	if !body {
		return get(path), "hello " + path + " "
	}
	b := strings.Repeat("x", rand.IntN(200))
	return post(path, b), "hello " + path + " " + b
}

// answer expects one answer and reports whether the server will close.
func (c *loadClient) answer(want string) (closes bool, err error) {
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && string(b) != want {
		err = fmt.Errorf("answer %q, want %q", b, want)
	}
	return resp.Close, err
}

func (c *loadClient) ask(body bool, write func(string) error) error {
	if err := c.connect(); err != nil {
		return err
	}
	request, want := c.request(body)
	if err := write(request); err != nil {
		return err
	}
	closes, err := c.answer(want)
	if closes || err != nil {
		c.close()
	}
	think()
	return err
}

func think() { time.Sleep(time.Duration(rand.IntN(int(2 * time.Millisecond)))) }

func (c *loadClient) write(s string) error {
	_, err := io.WriteString(c.nc, s)
	return err
}

func (c *loadClient) get() error  { return c.ask(false, c.write) }
func (c *loadClient) post() error { return c.ask(true, c.write) }

func (c *loadClient) once() error {
	defer c.close()
	return c.post()
}

func (c *loadClient) hesitate() error {
	defer c.close()
	return c.ask(true, func(s string) error {
		think()
		return c.write(s)
	})
}

func (c *loadClient) stutter() error {
	return c.ask(true, func(s string) error {
		for len(s) > 0 {
			n := min(1+rand.IntN(3), len(s))
			if err := c.write(s[:n]); err != nil {
				return err
			}
			s = s[n:]
			if rand.IntN(8) == 0 {
				think()
			}
		}
		return nil
	})
}

// pipeline sends several requests at once. Those behind an answer that
// announces the close were not processed, by the protocol, and are sent again.
func (c *loadClient) pipeline() error {
	if err := c.connect(); err != nil {
		return err
	}
	var all string
	var wants []string
	for i := range 1 + rand.IntN(4) {
		request, want := c.request(i%2 == 1)
		all += request
		wants = append(wants, want)
	}
	if err := c.write(all); err != nil {
		return err
	}
	for _, want := range wants {
		closes, err := c.answer(want)
		if err != nil {
			return err
		}
		if closes {
			c.close()
			break
		}
	}
	think()
	return nil
}
