//go:build unix

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/examples/internal/exampletest"
	"github.com/go-handover/handover/internal/proctest/load"
)

func TestUpgradesLoseNothingAndKeepConnections(t *testing.T) {
	s := exampletest.Start(t, "fasthttp")
	l, err := load.Start(t.Context(), load.Config{Target: "http://" + s.Addr(), Duration: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	clients := exampletest.NewClients(t)
	clients.Go(4, "pipelining", func(ctx context.Context) error { return pipeline(ctx, s.Addr(), clients) })
	s.ReplaceUnder(clients)
	clients.Stop()
	r := l.Stop()
	t.Log(r)
	if r.Total.Failed > 0 || len(r.Processes) < exampletest.Upgrades {
		t.Errorf("%d requests lost, %d processes have answered", r.Total.Failed, len(r.Processes))
	}
	for _, k := range r.Kinds {
		if k.Kind != load.New && k.Kind != load.Late && k.Dials != k.Clients {
			t.Errorf("%d clients of kind %s have connected %d times, want once each", k.Clients, k.Kind, k.Dials)
		}
	}
	s.Ends()
}

// In a stop, an idle connection has one more request, and the answer says that
// it was the last one.
func TestStopAnswersOneMoreRequest(t *testing.T) {
	s := exampletest.Start(t, "fasthttp", "-idle-wait", "1h")
	nc, in := idle(t, s.Addr())
	pid := s.PID()
	s.Signal(pid, syscall.SIGTERM)
	var err error
	for err == nil { // the signal may not have arrived
		io.WriteString(nc, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		_, err = answer(in)
	}
	if !errors.Is(err, errLast) {
		t.Errorf("the last answer is %v, want %v", err, errLast)
	}
	s.Drained(pid)
	s.WaitGone()
}

// The old process does not wait for clients that say nothing.
func TestIdleConnectionsMove(t *testing.T) {
	s := exampletest.Start(t, "fasthttp", "-idle-wait", "1h")
	nc, in := idle(t, s.Addr())
	old := s.PID()
	s.Upgrade()
	s.Drained(old)
	io.WriteString(nc, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if generation, err := answer(in); generation != 2 || err != nil {
		t.Errorf("generation %d has answered, %v; want 2", generation, err)
	}
	nc.Close()
	s.Ends()
}

func TestIdleWaitEndsADrain(t *testing.T) {
	s := exampletest.Start(t, "fasthttp", "-idle-wait", "1ms")
	_, in := idle(t, s.Addr())
	s.Ends()
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("the connection ends with %v, want EOF", err)
	}
}

// idle returns a connection on which a request was answered.
func idle(t *testing.T, addr string) (net.Conn, *bufio.Reader) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	in := bufio.NewReader(nc)
	io.WriteString(nc, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := answer(in); err != nil {
		t.Fatal(err)
	}
	return nc, in
}

// pipeline sends five requests at once on its one connection, again and again.
func pipeline(ctx context.Context, addr string, clients *exampletest.Clients) error {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	in := bufio.NewReader(nc)
	for ctx.Err() == nil {
		nc.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(nc, strings.Repeat("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 5)); err != nil {
			return err
		}
		for n := range 5 {
			generation, err := answer(in)
			if err != nil {
				return fmt.Errorf("response %d: %w", n, err)
			}
			clients.Answered(generation)
		}
		exampletest.Think(ctx)
	}
	return nil
}

var errLast = errors.New("the connection ends with this answer")

// answer returns which generation has answered GET /.
func answer(in *bufio.Reader) (generation int, err error) {
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	if resp.Close {
		return 0, errLast
	}
	_, err = fmt.Sscanf(string(body), "pid=%d generation=%d", new(int), &generation)
	return generation, err
}
