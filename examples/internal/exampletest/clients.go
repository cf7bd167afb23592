// Package exampletest puts clients that never retry on an example, and
// replaces it under them.
package exampletest

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Clients is a set of clients at work. Each speaks until its context is done,
// ends what it has begun, and returns nil, or its first error.
type Clients struct {
	t       *testing.T
	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
	answers atomic.Int64

	mu   sync.Mutex
	from map[int]chan struct{} // generations; closed at the first answer
}

// NewClients returns an empty set, which is stopped at the end of the test.
func NewClients(t *testing.T) *Clients {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	c := &Clients{t: t, ctx: ctx, stop: stop, from: make(map[int]chan struct{})}
	t.Cleanup(c.Stop)
	return c
}

// Go starts n clients of one kind.
func (c *Clients) Go(n int, name string, client func(ctx context.Context) error) {
	for i := range n {
		c.running.Go(func() {
			if err := client(c.ctx); err != nil {
				c.t.Errorf("%s client %d: %v", name, i, err)
			}
		})
	}
}

// Answered notes that a process of this generation has answered.
func (c *Clients) Answered(generation int) {
	c.answers.Add(1)
	first := c.first(generation)
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-first:
	default:
		close(first)
	}
}

func (c *Clients) first(generation int) chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.from[generation] == nil {
		c.from[generation] = make(chan struct{})
	}
	return c.from[generation]
}

// Stop waits until all clients have returned.
func (c *Clients) Stop() {
	c.stop()
	c.running.Wait()
	if n := c.answers.Swap(0); n > 0 {
		c.t.Logf("%d answers", n)
	}
}

// Think is a client's pause between two requests.
func Think(ctx context.Context) {
	select {
	case <-time.After(rand.N(20 * time.Millisecond)):
	case <-ctx.Done():
	}
}
