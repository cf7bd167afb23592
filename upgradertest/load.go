package upgradertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest/load"
)

// Client is one of those that put load on a server.
type Client interface {
	// Ask makes one request and reads the answer to its end. The error says that
	// the request was lost: it is counted, and not made again. An end of ctx only
	// tells that the test does not want to wait any more.
	Ask(ctx context.Context) error

	// Close gives up what the client keeps between two requests.
	Close()
}

// Load is a set of clients at work. Each makes one request after the other, with
// a pause of 20 ms at most.
type Load struct {
	tb       testing.TB
	stopping context.Context
	stop     context.CancelFunc
	abandon  context.CancelFunc
	clients  sync.WaitGroup
	ended    chan struct{} // closed when all clients have
	limit    time.Duration

	mu     sync.Mutex
	report Report
	more   chan struct{} // closed and replaced at each request that has ended
}

// Report is what became of the requests of a Load.
type Report struct {
	Requests int // that have ended
	Failed   int // those of them that were lost

	// Failures are the lost ones by kind. Of an upgrade that is not as it should be
	// "refused" (nobody listens), "reset" and "eof" (the connection was closed, the
	// request unanswered) and "truncated" (within the answer) tell most. The others
	// are "timeout", "status", "tls", "rejected" (by HTTP/2) and "other".
	Failures map[string]int

	// Examples are the first few errors.
	Examples []string
}

const (
	think    = 20 * time.Millisecond // the longest pause between two requests
	examples = 10                    // so many errors are kept
)

// StartLoad puts n clients to work, as newClient returns them. It is for protocols
// of your own: LoadHTTP has clients of HTTP. The load ends at Stop, or at the end
// of the test.
func StartLoad(tb testing.TB, n int, newClient func(i int) Client) *Load {
	tb.Helper()
	l := &Load{tb: tb, ended: make(chan struct{}), limit: DefaultTimeout, more: make(chan struct{})}
	l.report.Failures = make(map[string]int)
	var asking context.Context
	asking, l.abandon = context.WithCancel(context.Background())
	l.stopping, l.stop = context.WithCancel(asking)
	for i := range n {
		c := newClient(i)
		l.clients.Go(func() { l.work(asking, c) })
	}
	go func() {
		l.clients.Wait()
		close(l.ended)
	}()
	tb.Cleanup(func() { l.Stop() })
	return l
}

func (l *Load) work(asking context.Context, c Client) {
	defer c.Close()
	for {
		l.rest(c)
		if l.stopping.Err() != nil {
			return
		}
		err := c.Ask(asking)
		if asking.Err() != nil {
			return // whatever err is, it is our own doing
		}
		l.note(err)
	}
}

// rest is a pause between two requests. A client that is attentive looks at its
// connection meanwhile.
func (l *Load) rest(c Client) {
	d := rand.N(think)
	if c, ok := c.(interface {
		idle(ctx context.Context, d time.Duration)
	}); ok {
		c.idle(l.stopping, d)
		return
	}
	select {
	case <-time.After(d):
	case <-l.stopping.Done():
	}
}

func (l *Load) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.report.Requests++
	if err != nil {
		l.report.Failed++
		l.report.Failures[kindOf(err)]++
		if len(l.report.Examples) < examples {
			l.report.Examples = append(l.report.Examples, err.Error())
		}
	}
	close(l.more)
	l.more = make(chan struct{})
}

// answered returns how many requests have an answer, and what is closed when
// there is one more.
func (l *Load) answered() (n int, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.report.Requests - l.report.Failed, l.more
}

// Wait waits until n more requests have been answered: before an upgrade, so
// that the clients are at work, and after it, so that the new process has
// answered them. The test fails if they are not within DefaultTimeout.
func (l *Load) Wait(n int) {
	l.tb.Helper()
	limit := time.After(l.limit)
	before, more := l.answered()
	for now := before; now < before+n; now, more = l.answered() {
		select {
		case <-more:
		case <-l.ended:
			l.tb.Fatalf("upgradertest: load: no more requests are made; %s", l.sofar())
		case <-limit:
			l.tb.Fatalf("upgradertest: load: %d of %d requests were answered within %v; %s", now-before, n, l.limit, l.sofar())
		}
	}
}

func (l *Load) sofar() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.report.clone()
}

// Stop lets the requests under way end, makes no more, and reports. After
// DefaultTimeout it waits no longer, and the test fails. It may be called again.
func (l *Load) Stop() Report {
	l.tb.Helper()
	l.stop()
	select {
	case <-l.ended:
	case <-time.After(l.limit):
		l.tb.Errorf("upgradertest: load: a request has taken more than %v: it is not counted", l.limit)
		l.abandon()
		<-l.ended
	}
	l.abandon()
	return l.sofar()
}

// MustBeClean fails the test if a request was lost, or if there was none.
func (r Report) MustBeClean(tb testing.TB) {
	tb.Helper()
	if r.Requests == 0 {
		tb.Fatal("upgradertest: load: no request was made: Wait for some")
	}
	if r.Failed > 0 {
		tb.Fatalf("upgradertest: load: %s", r)
	}
}

func (r Report) clone() Report {
	r.Failures, r.Examples = maps.Clone(r.Failures), slices.Clone(r.Examples)
	return r
}

// String is a line, and one more for each kind of failure and each example.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d requests were lost", r.Failed, r.Requests)
	for _, kind := range kinds {
		if n := r.Failures[string(kind)]; n > 0 {
			fmt.Fprintf(&b, "\n\t%d %s", n, kind)
		}
	}
	for _, text := range r.Examples {
		fmt.Fprintf(&b, "\n\t%s", text)
	}
	return b.String()
}

// kinds are those of failure, in the order of a report.
var kinds = append(slices.Clip(load.AskFailures), load.Status)

func kindOf(err error) string {
	if errors.As(err, new(*statusError)) {
		return string(load.Status)
	}
	return string(load.Classify(err))
}
