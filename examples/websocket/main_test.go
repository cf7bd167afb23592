//go:build unix

package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/go-handover/handover/examples/internal/exampletest"
)

// client sends messages, and again those that were not acknowledged when the
// server asked it to connect again. It knows no other reason to do that.
type client struct {
	url     string
	ws      *websocket.Conn
	pending []string // sent or to be sent, not acknowledged
}

func (c *client) connect(ctx context.Context) (err error) {
	ws, resp, err := websocket.Dial(ctx, c.url, nil)
	if resp != nil && resp.Body != nil {
		resp.Body.Close()
	}
	c.ws = ws
	return err
}

// exchange returns when all pending messages are acknowledged. It sends those
// of a connection at once.
func (c *client) exchange(answered func(generation int)) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for len(c.pending) > 0 {
		err := c.attempt(ctx, answered)
		if websocket.CloseStatus(err) == websocket.StatusGoingAway {
			err = c.connect(ctx)
		}
		if err != nil {
			return fmt.Errorf("%d messages are not acknowledged: %w", len(c.pending), err)
		}
	}
	return nil
}

func (c *client) attempt(ctx context.Context, answered func(generation int)) error {
	for _, m := range c.pending {
		if err := c.ws.Write(ctx, websocket.MessageText, []byte(m)); err != nil {
			return err
		}
	}
	for len(c.pending) > 0 {
		_, answer, err := c.ws.Read(ctx)
		if err != nil {
			return err
		}
		number, echo, _ := strings.Cut(string(answer), " ")
		var generation int
		if _, err := fmt.Sscan(number, &generation); err != nil || echo != c.pending[0] {
			return fmt.Errorf("%q is acknowledged by %q", c.pending[0], answer)
		}
		c.pending = c.pending[1:]
		answered(generation)
	}
	return nil
}

func TestUpgradesLoseNoMessage(t *testing.T) {
	s := exampletest.Start(t, "websocket")
	clients := exampletest.NewClients(t)
	var acknowledged atomic.Int64
	talk := func(atOnce int) func(context.Context) error {
		return func(ctx context.Context) error {
			c := &client{url: "ws://" + s.Addr()}
			if err := c.connect(ctx); err != nil {
				return err
			}
			defer func() { c.ws.Close(websocket.StatusNormalClosure, "") }()
			for n := 0; ctx.Err() == nil; n += atOnce {
				for i := range atOnce {
					c.pending = append(c.pending, fmt.Sprintf("message %d", n+i))
				}
				err := c.exchange(func(generation int) {
					acknowledged.Add(1)
					clients.Answered(generation)
				})
				if err != nil {
					return err
				}
				exampletest.Think(ctx)
			}
			return nil
		}
	}
	clients.Go(16, "one message", talk(1))
	clients.Go(8, "five messages", talk(5))
	s.ReplaceUnder(clients)
	clients.Stop()
	s.Ends()
	// No server has worked on a message that its client had to send again.
	if got, want := s.Sum("acknowledged"), acknowledged.Load(); got != want {
		t.Errorf("the servers have acknowledged %d messages, the clients know of %d", got, want)
	}
}
