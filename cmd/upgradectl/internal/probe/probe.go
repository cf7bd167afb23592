package probe

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/go-handover/handover/internal/proctest/load"
)

// h2Streams is how many requests a client has on a connection of HTTP/2 that it
// keeps.
const h2Streams = 4

// lossPause is the least pause after a loss: a server that refuses is not to be
// flooded.
const lossPause = 10 * time.Millisecond

// probe is a set of clients at work. After run, what it has found belongs to
// who called it.
type probe struct {
	started time.Time
	ended   time.Time
	rate    float64
	rows    []*row
	pacer   pacer

	answered, lost atomic.Int64
	cuts           atomic.Int64 // of the lost ones, as far as is known
	slowest        atomic.Int64 // nanoseconds, since the live line was last written
	note           atomic.Pointer[string]

	mu        sync.Mutex
	told      bool // the control socket tells of upgrades
	processes []process
	marks     []mark
	crashes   []span
}

// row is a row of the table: the clients that do the same.
type row struct {
	target  target
	kind    string // new or keep
	clients []*client
}

// client is one connection after the other.
type client struct {
	probe   *probe
	target  target
	asker   *load.Asker
	streams int
	think   time.Duration

	mu       sync.Mutex // with HTTP/2 there are several goroutines
	samples  []sample
	losses   []loss
	statuses map[int]int
	examples map[load.Failure][]string
}

// sample is a request that was answered.
type sample struct {
	start, took time.Duration // the first since the probe was started
	pid         int           // 0: not told
}

// loss is a request that was not.
type loss struct {
	sample
	kind load.Failure
}

// statusLoss is an answer with another status than it must have.
const statusLoss load.Failure = "status"

// failures are the kinds of loss in the order of the report.
var failures = append(slices.Clip(load.AskFailures), statusLoss)

func newProbe(o *options, targets []target) *probe {
	p := &probe{started: time.Now(), rate: o.rate}
	if o.rate > 0 {
		p.pacer.every = time.Duration(float64(time.Second) / o.rate)
	}
	for _, t := range targets {
		p.add(t, "new", o.fresh, false, o.think)
		p.add(t, "keep", o.keep, true, o.think)
	}
	return p
}

func (p *probe) add(t target, kind string, n int, keep bool, think time.Duration) {
	if n == 0 {
		return
	}
	t.peer.Keep = keep
	r := &row{target: t, kind: kind}
	for range n {
		c := &client{
			probe: p, target: t, asker: load.NewAsker(t.peer), streams: 1, think: think,
			statuses: make(map[int]int), examples: make(map[load.Failure][]string),
		}
		if t.peer.H2 && keep {
			c.streams = h2Streams
		}
		r.clients = append(r.clients, c)
	}
	p.rows = append(p.rows, r)
}

// run puts the clients to work until end is done, and then lets the requests in
// flight finish, unless abandoned is done: those are neither answered nor lost.
func (p *probe) run(end, abandoned context.Context) {
	var clients sync.WaitGroup
	for _, r := range p.rows {
		for _, c := range r.clients {
			clients.Go(func() { c.run(end, abandoned) })
		}
	}
	clients.Wait()
	p.ended = time.Now()
}

func (c *client) run(end, abandoned context.Context) {
	defer c.asker.Close()
	var streams sync.WaitGroup
	for range c.streams {
		streams.Go(func() { c.work(end, abandoned) })
	}
	streams.Wait()
}

func (c *client) work(end, abandoned context.Context) {
	pause := time.Duration(0)
	for {
		now := time.Now()
		c.asker.Idle(end, max(c.probe.pacer.take(now).Sub(now), pause))
		if end.Err() != nil {
			return
		}
		pause = c.think
		if !c.ask(abandoned) {
			pause = max(pause, lossPause)
		}
	}
}

// ask makes one request, and reports whether it was answered.
func (c *client) ask(abandoned context.Context) bool {
	start := time.Now()
	answer, err := c.asker.Ask(abandoned, c.target.ask)
	if abandoned.Err() != nil {
		return false // whatever err is, it is our own doing
	}
	s := sample{start: start.Sub(c.probe.started), took: time.Since(start)}
	kind := load.Classify(err)
	if want := c.target.expect; err == nil && want != 0 && answer.Status != want {
		kind, err = statusLoss, fmt.Errorf("status %d, want %d", answer.Status, want)
	}
	if answer.Status != 0 {
		s.pid = pidOf(answer)
		c.probe.saw(s.pid, start.Add(s.took))
	}
	if err != nil {
		c.lose(loss{s, kind}, err)
		return false
	}
	c.keep(s, answer.Status)
	return true
}

func (c *client) keep(s sample, status int) {
	c.probe.answered.Add(1)
	c.probe.slow(s.took)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.samples = append(c.samples, s)
	c.statuses[status]++
}

// exampleLosses is how many losses of each kind a client describes.
const exampleLosses = 2

func (c *client) lose(l loss, err error) {
	c.probe.lost.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.losses = append(c.losses, l)
	if len(c.examples[l.kind]) < exampleLosses {
		at := c.probe.started.Add(l.start + l.took)
		c.examples[l.kind] = append(c.examples[l.kind], at.Format("15:04:05.000 ")+err.Error())
	}
}

func (c *client) countLosses(is func(loss) bool) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.losses {
		if is(l) {
			n++
		}
	}
	return n
}

// slow keeps the longest time until the live line takes it.
func (p *probe) slow(took time.Duration) {
	for {
		longest := p.slowest.Load()
		if int64(took) <= longest || p.slowest.CompareAndSwap(longest, int64(took)) {
			return
		}
	}
}

// pidHeader is what a server can tell its pid with.
const pidHeader = "X-Handover-Pid"

// pidOf returns who has answered, 0 if the answer does not tell.
func pidOf(a load.Answer) int {
	if pid := number(a.Header.Get(pidHeader)); pid != 0 {
		return pid
	}
	if pid := number(blockField(a.Block, pidHeader)); pid != 0 {
		return pid
	}
	if rest, ok := strings.CutPrefix(a.Start, "pid="); ok {
		digits := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if digits < 0 {
			digits = len(rest)
		}
		return number(rest[:digits])
	}
	return 0
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// blockField returns a field of a header of HTTP/2.
func blockField(block []byte, name string) string {
	if block == nil {
		return ""
	}
	fields, err := hpack.NewDecoder(0, nil).DecodeFull(block)
	if err != nil {
		return "" // it tells no pid, and was an answer nevertheless
	}
	for _, f := range fields {
		if http.CanonicalHeaderKey(f.Name) == name {
			return f.Value
		}
	}
	return ""
}

// pacer gives out the moments at which requests start.
type pacer struct {
	every time.Duration // 0: at once

	mu   sync.Mutex
	next time.Time
}

// take returns the next moment. What was not used is not made up for: after a
// stall there is no burst.
func (p *pacer) take(now time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.every == 0 {
		return now
	}
	if p.next.Before(now) {
		p.next = now
	}
	at := p.next
	p.next = at.Add(p.every)
	return at
}
