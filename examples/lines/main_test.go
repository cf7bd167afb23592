//go:build unix

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/go-handover/handover/examples/internal/exampletest"
)

// client is one connection to the service.
type client struct {
	net.Conn
	in *bufio.Reader
}

func dial(addr string) (*client, error) {
	nc, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return nil, err
	}
	return &client{nc, bufio.NewReader(nc)}, nil
}

// send writes text in pieces.
func (c *client) send(ctx context.Context, text string, pieces int) error {
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	for ; pieces > 1; pieces-- {
		n := rand.IntN(len(text))
		if _, err := io.WriteString(c, text[:n]); err != nil {
			return err
		}
		exampletest.Think(ctx)
		text = text[n:]
	}
	_, err := io.WriteString(c, text)
	return err
}

// receive reads one answer, and returns which generation gave it.
func (c *client) receive(line string) (generation int, err error) {
	answer, err := c.in.ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("%q is not answered: %w", line, err)
	}
	number, echo, _ := strings.Cut(answer, " ")
	if _, err := fmt.Sscan(number, &generation); err != nil || echo != line {
		return 0, fmt.Errorf("%q is answered %q", line, answer)
	}
	return generation, nil
}

func TestConnectionsSurviveUpgrades(t *testing.T) {
	s := exampletest.Start(t, "lines")
	clients := exampletest.NewClients(t)
	// Each dials once. It sends one line after the other, or a few at once, whole
	// or in pieces.
	for _, kind := range []struct {
		name          string
		lines, pieces int
	}{{"one line", 1, 1}, {"pipelining", 5, 1}, {"slow", 1, 3}, {"slow pipelining", 5, 3}} {
		clients.Go(8, kind.name, func(ctx context.Context) error {
			c, err := dial(s.Addr())
			if err != nil {
				return err
			}
			defer c.Close()
			for n := 0; ctx.Err() == nil; n += kind.lines {
				var lines []string
				for i := range kind.lines {
					lines = append(lines, fmt.Sprintf("line %d of %v\n", n+i, c.LocalAddr()))
				}
				if err := c.send(ctx, strings.Join(lines, ""), kind.pieces); err != nil {
					return err
				}
				for _, line := range lines {
					generation, err := c.receive(line)
					if err != nil {
						return err
					}
					clients.Answered(generation)
				}
				exampletest.Think(ctx)
			}
			return nil
		})
	}
	clients.Go(2, "new connection", func(ctx context.Context) error {
		for ctx.Err() == nil {
			c, err := dial(s.Addr())
			if err != nil {
				return err
			}
			exampletest.Think(ctx) // it says nothing for a while
			err = c.send(ctx, "hello\n", 1)
			if err == nil {
				_, err = c.receive("hello\n")
			}
			c.Close()
			if err != nil {
				return err
			}
			exampletest.Think(ctx)
		}
		return nil
	})
	s.ReplaceUnder(clients)
	clients.Stop()
	s.Ends()
}

// The old process does not wait for clients that say nothing, now or ever.
func TestConnectionsAtRestMove(t *testing.T) {
	s := exampletest.Start(t, "lines", "-idle", "1h")
	spoke, err := dial(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer spoke.Close()
	silent, err := dial(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for i, c := range []*client{spoke, spoke, silent} {
		c.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(c, "line\n")
		if got, err := c.receive("line\n"); err != nil || i > 0 && got != 2 {
			t.Fatalf("generation %d has answered line %d, %v", got, i, err)
		}
		if i == 0 {
			old := s.PID()
			s.Upgrade()
			s.Drained(old)
		}
	}
	s.Ends()
}

// A line that has begun is answered by the process that has read its
// beginning. Only then does the connection move.
func TestBegunLineIsAnsweredByTheOldProcess(t *testing.T) {
	s := exampletest.Start(t, "lines")
	c, err := dial(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// The answer shows that the beginning of the second line was read, too.
	io.WriteString(c, "one\ntw")
	answers := func(line string, want int) {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if got, err := c.receive(line); err != nil || got != want {
			t.Fatalf("%q is answered by generation %d, %v; want %d", line, got, err, want)
		}
	}
	answers("one\n", 1)
	old := s.PID()
	s.Upgrade()
	io.WriteString(c, "o\n")
	answers("two\n", 1)
	s.Drained(old)
	io.WriteString(c, "three\n")
	answers("three\n", 2)
	c.Close()
	s.Ends()
}

// The new version has no socket of this name, so it takes no connection.
func TestConnectionStaysWhereTheHandOverFails(t *testing.T) {
	s := exampletest.Start(t, "lines")
	c, err := dial(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s.Replace(exampletest.Build(t, "websocket"))
	old := s.PID()
	for _, line := range []string{"one\n", "two\n", "three\n"} {
		c.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(c, line)
		if got, err := c.receive(line); err != nil || got != 1 {
			t.Fatalf("%q is answered by generation %d, %v; want 1", line, got, err)
		}
		if s.PID() == old {
			s.Upgrade()
		}
	}
	c.Close()
	s.Drained(old)
	s.Ends()
}

func TestStopDoesNotWaitForConnectionsAtRest(t *testing.T) {
	s := exampletest.Start(t, "lines", "-idle", "1h")
	c, err := dial(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "one\n")
	if _, err := c.receive("one\n"); err != nil {
		t.Fatal(err)
	}
	s.Ends()
	if _, err := c.in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("the connection ends with %v, want EOF", err)
	}
}
