package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Config says what to put on which server. Only Target is required.
type Config struct {
	// Target is http://HOST:PORT, https://HOST:PORT (any certificate will
	// do) or unix:PATH.
	Target string

	// Clients is how many there are of each kind. Nil: 16 Get and 16 Post, 4
	// each of New, Late, Slow and Stream.
	Clients map[Kind]int

	// Requests bounds the requests of all clients together, of which a message
	// of WS and an event of SSE are one each. Zero: Duration alone does.
	Requests int

	// Duration bounds the time in which requests start. Zero: one minute.
	Duration time.Duration

	// Timeout is the limit of each of: dialling, and a request, beyond the
	// time that it asks the server to take. Zero: 10 s.
	Timeout time.Duration

	// Think is the longest pause between two requests of a client; each
	// pause is random. Zero: 20 ms. Negative: none.
	Think time.Duration

	// Hold is how long a request takes of Slow, Stream, Bytewise, Upload and
	// Download, and one in eight of H2. Zero: 200 ms.
	Hold time.Duration

	// First is called with each process that answers GET / for the first
	// time, from any goroutine. Nil: nothing is.
	First func(Process)
}

func (c Config) withDefaults() Config {
	if c.Clients == nil {
		c.Clients = map[Kind]int{New: 4, Late: 4, Get: 16, Post: 16, Slow: 4, Stream: 4}
	}
	c.Duration = orElse(c.Duration, time.Minute)
	c.Timeout = orElse(c.Timeout, 10*time.Second)
	c.Think = max(0, orElse(c.Think, 20*time.Millisecond))
	c.Hold = orElse(c.Hold, 200*time.Millisecond)
	return c
}

func orElse(d, zero time.Duration) time.Duration {
	if d == 0 {
		return zero
	}
	return d
}

// Load is a set of clients at work. Its methods may be called from any
// goroutine.
type Load struct {
	cfg     Config
	target  target
	started time.Time
	ended   time.Time // read after done
	stop    context.CancelFunc
	done    chan struct{} // closed when all clients have returned

	clients []*client // each owns its records until done

	asked, answered, failed atomic.Int64

	mu        sync.Mutex
	marks     []time.Time
	crashes   []span
	processes []Process     // in the order of their first answer
	more      chan struct{} // closed when there is one more; nil: nobody waits
}

// Process is a server process that answered GET /.
type Process struct {
	PID        int
	Generation int
	Version    string
	Answers    int
	First      time.Time
}

type span struct{ from, to time.Time }

// overlaps reports that a request was under way during s.
func (s span) overlaps(f failure) bool { return !f.end.Before(s.from) && !f.start.After(s.to) }

// Start connects the clients and returns at once. The load ends when it has
// reached one of its bounds, at Stop, or when ctx is done. The last one
// abandons the requests in flight, and counts them neither as answered nor as
// lost.
func Start(ctx context.Context, cfg Config) (*Load, error) {
	t, err := parseTarget(cfg.Target)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	cfg = cfg.withDefaults()
	l := &Load{cfg: cfg, target: t, started: time.Now(), done: make(chan struct{})}
	for _, k := range Kinds {
		for range cfg.Clients[k] {
			l.clients = append(l.clients, &client{load: l, kind: k, id: len(l.clients)})
		}
	}
	if len(l.clients) == 0 {
		return nil, errors.New("load: no clients")
	}
	starting, stop := context.WithTimeout(ctx, cfg.Duration)
	l.stop = stop
	go l.run(ctx, starting)
	return l, nil
}

// run ends when every client has.
func (l *Load) run(ctx, starting context.Context) {
	defer close(l.done)
	defer l.stop()
	var wg sync.WaitGroup
	for _, c := range l.clients {
		wg.Go(func() { c.run(ctx, starting) })
	}
	wg.Wait()
	l.ended = time.Now()
}

// Stop lets the requests in flight finish, starts no more, and reports.
func (l *Load) Stop() Report {
	l.stop()
	<-l.done
	return l.report()
}

// Done is closed when the load has ended, by whatever bound.
func (l *Load) Done() <-chan struct{} { return l.done }

// Counts returns how many requests have ended until now, and how many of them
// were lost.
func (l *Load) Counts() (ended, failed int) {
	n := l.failed.Load()
	return int(l.answered.Load() + n), int(n)
}

// Processes returns those that have answered until now, in the order of
// their first answer.
func (l *Load) Processes() []Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.processes)
}

// WaitFor returns when the process with this pid has answered, or the load has
// ended.
func (l *Load) WaitFor(pid int) {
	for {
		l.mu.Lock()
		answered := slices.ContainsFunc(l.processes, func(p Process) bool { return p.PID == pid })
		if l.more == nil {
			l.more = make(chan struct{})
		}
		more := l.more
		l.mu.Unlock()
		if answered {
			return
		}
		select {
		case <-more:
		case <-l.done:
			return
		}
	}
}

// Mark says that something happened to the server at t, an upgrade for
// example. The report gives the latency around the marks apart from the rest.
func (l *Load) Mark(t time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.marks = append(l.marks, t)
}

// Crash says that a process of the server died between from and to without a
// chance to finish. It takes the connections that it had accepted with it,
// and no other process can answer for them: requests that were under way
// meanwhile and were cut off (eof, reset, truncated) are counted as Cut and not as
// Failed. A client on a busy machine may notice after to. A refused connection is
// a failure still, and so is one that timed out.
func (l *Load) Crash(from, to time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.crashes = append(l.crashes, span{from, to})
}

// take returns how many of k more requests are within the bounds.
func (l *Load) take(k int) int {
	if l.cfg.Requests == 0 {
		return k
	}
	over := int(l.asked.Add(int64(k))) - l.cfg.Requests
	return max(0, k-max(0, over))
}

// identity checks the answer to GET /, and notes who gave it.
func (l *Load) identity(r io.Reader) error {
	body, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	var p Process
	want := "pid=… generation=… version=…\n"
	if n, _ := fmt.Sscanf(string(body), "pid=%d generation=%d version=%s\n", &p.PID, &p.Generation, &p.Version); n != 3 {
		return wrong(string(body), want)
	}
	if string(body) != fmt.Sprintf("pid=%d generation=%d version=%s\n", p.PID, p.Generation, p.Version) {
		return wrong(string(body), want)
	}
	l.note(p)
	return nil
}

func (l *Load) note(p Process) {
	if l.knows(p) || l.cfg.First == nil {
		return
	}
	l.cfg.First(p)
}

// knows reports that p has answered before.
func (l *Load) knows(p Process) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.processes {
		if l.processes[i].PID == p.PID {
			l.processes[i].Answers++
			return true
		}
	}
	p.Answers, p.First = 1, time.Now()
	l.processes = append(l.processes, p)
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
	return false
}
