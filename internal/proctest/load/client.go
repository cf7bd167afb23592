package load

import (
	"context"
	"math/rand/v2"
	"time"
)

// client sends one request after the other. All its fields but load belong to
// its goroutine; the report reads them after that has ended.
type client struct {
	load *Load
	kind Kind
	id   int

	conn *conn // nil: none
	lost bool  // the latest request failed

	samples  []sample
	failures []failure
	texts    map[Failure][]string // the first few of each kind
	dials    int
	closed   int // idle connections that the server has closed
}

// sample is a request that was answered.
type sample struct {
	start, end time.Duration // since the load was started
	took       time.Duration // without the time that was meant to be spent
}

type failure struct {
	at   time.Time
	kind Failure
}

// examples is how many failures of each kind a client describes.
const examples = 3

// run ends when no more requests may start. Done ctx ends it at once.
func (c *client) run(ctx, starting context.Context) {
	defer c.hangUp()
	c.texts = make(map[Failure][]string)
	for n := 1; ; n++ {
		c.pause(starting, c.think())
		if starting.Err() != nil || !c.load.take() {
			return
		}
		r := c.request(n)
		start := time.Now()
		err := c.send(ctx, r)
		if ctx.Err() != nil {
			return // whatever err is, it is our own doing
		}
		c.record(r, start, err)
	}
}

// send makes one attempt, on the connection that is there or on a new one.
func (c *client) send(ctx context.Context, r request) error {
	limit := c.load.cfg.Timeout
	if c.conn == nil {
		c.dials++
		conn, err := c.load.target.dial(ctx, limit)
		if err != nil {
			return err
		}
		c.conn = conn
	}
	time.Sleep(r.silence)
	keep, err := c.conn.exchange(r, limit+r.hold)
	if err != nil || !keep || !c.kind.keeps() {
		c.hangUp()
	}
	return err
}

func (c *client) hangUp() {
	if c.conn != nil {
		c.conn.close()
		c.conn = nil
	}
}

// pause is the client's think time. A connection that the server closes
// meanwhile is given up: that is no failure.
func (c *client) pause(starting context.Context, d time.Duration) {
	if c.conn == nil {
		select {
		case <-time.After(d):
		case <-starting.Done():
		}
		return
	}
	if d > 0 && !c.conn.idle(starting, d) {
		c.closed++
		c.hangUp()
	}
}

func (c *client) think() time.Duration {
	d := c.load.cfg.Think
	if d > 0 {
		d = rand.N(d)
	}
	if c.lost {
		d = max(d, time.Millisecond) // a server that refuses is not to be flooded
	}
	return d
}

func (c *client) record(r request, start time.Time, err error) {
	end := time.Now()
	c.lost = err != nil
	if err == nil {
		took := max(0, end.Sub(start)-r.silence-r.hold)
		c.samples = append(c.samples, sample{start.Sub(c.load.started), end.Sub(c.load.started), took})
		c.load.answered.Add(1)
		return
	}
	kind := classify(err)
	c.failures = append(c.failures, failure{end, kind})
	if len(c.texts[kind]) < examples {
		c.texts[kind] = append(c.texts[kind], end.Format("15:04:05.000 ")+err.Error())
	}
	c.load.failed.Add(1)
}
