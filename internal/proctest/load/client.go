package load

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// client sends one request after the other. The report reads its records after
// it has ended.
type client struct {
	load *Load
	kind Kind
	id   int

	mu       sync.Mutex // clients of HTTP/2 have several goroutines
	asked    int        // requests until now
	lost     bool       // the latest request failed
	samples  []sample
	failures []failure
	texts    map[Failure][]string // the first few of each kind
	dials    int
	closed   int // idle connections that the server has closed
	told     int // requests that were sent again, because the server said to
}

// sample is a request that was answered.
type sample struct {
	start, end time.Duration // since the load was started
	took       time.Duration // without the time that was meant to be spent
}

type failure struct {
	start, end time.Time
	kind       Failure
}

// examples is how many failures of each kind a client describes.
const examples = 3

// A courier carries the requests of a client, and has its connection. Where the
// kind has several streams, its methods are called by as many goroutines.
type courier interface {
	// idle lets d pass between two turns, or less when starting is done. What
	// the server says meanwhile is noticed.
	idle(starting context.Context, d time.Duration)

	// turn makes the requests from number n to number n+k-1, one attempt each,
	// and records what became of them. It returns early when ctx is done.
	turn(ctx context.Context, n, k int)

	close()
}

func (c *client) courier() courier {
	switch c.kind {
	case Pipeline, Chaos:
		return &batch{link{client: c}}
	case WS:
		return &webSocket{link: link{client: c}}
	case SSE:
		return &events{link: link{client: c}}
	case H2:
		return newH2(c)
	case Transport, H2Transport:
		return newTransport(c)
	default:
		return &single{link{client: c}}
	}
}

// run ends when no more requests may start. Done ctx ends it at once.
func (c *client) run(ctx, starting context.Context) {
	c.texts = make(map[Failure][]string)
	courier := c.courier()
	defer courier.close()
	var wg sync.WaitGroup
	for range c.kind.streams() {
		wg.Go(func() { c.work(ctx, starting, courier) })
	}
	wg.Wait()
}

func (c *client) work(ctx, starting context.Context, courier courier) {
	for ctx.Err() == nil {
		courier.idle(starting, c.think())
		if starting.Err() != nil {
			return
		}
		k := c.load.take(c.kind.batch())
		if k == 0 {
			return
		}
		courier.turn(ctx, c.number(k), k)
	}
}

// number returns the first of the next k numbers.
func (c *client) number(k int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked += k
	return c.asked - k + 1
}

func (c *client) think() time.Duration {
	d := c.load.cfg.Think
	if d > 0 {
		d = rand.N(d)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost {
		d = max(d, time.Millisecond) // a server that refuses is not to be flooded
	}
	return d
}

// rest is an idle without a connection to look at.
func rest(starting context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-starting.Done():
	}
}

// record is called once for each request. meant is the time that it was meant
// to take.
func (c *client) record(ctx context.Context, start time.Time, meant time.Duration, err error) {
	if ctx.Err() != nil {
		return // whatever err is, it is our own doing
	}
	end := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = err != nil
	if err == nil {
		took := max(0, end.Sub(start)-meant)
		c.samples = append(c.samples, sample{start.Sub(c.load.started), end.Sub(c.load.started), took})
		c.load.answered.Add(1)
		return
	}
	kind := classify(err)
	c.failures = append(c.failures, failure{start, end, kind})
	if len(c.texts[kind]) < examples {
		c.texts[kind] = append(c.texts[kind], end.Format("15:04:05.000 ")+err.Error())
	}
	if kind != unsent {
		c.load.failed.Add(1)
	}
}

func (c *client) count(what *int, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*what += n
}
