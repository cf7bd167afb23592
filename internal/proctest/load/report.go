package load

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what became of the requests of a Load.
type Report struct {
	Target    string
	Elapsed   time.Duration
	Kinds     []Result // of the kinds that had clients
	Total     Result
	Marks     int
	Processes []Process // in the order of their first answer
}

// Result is what became of the requests of one kind of client. Each request
// is either answered, as it must be, or failed, or cut, or unsent.
type Result struct {
	Kind     Kind
	Clients  int
	Requests int
	Failed   int
	Cut      int // they went down with a process that crashed: see Crash

	Failures map[Failure]int      // the failed ones by kind
	Examples map[Failure][]string // the first few failed or cut ones by kind

	Dials  int // connections that were opened, or tried
	Closed int // connections that the server closed while they were idle: no failure

	// Told is how many were sent once more, on another connection, because the
	// server had said that they would not be answered: Connection: close in the
	// answer to an earlier one of a batch, close 1001 of a WebSocket, GOAWAY
	// where Go's Transport repeats a GET by itself. That is no failure, but a
	// connection that lasts has none.
	Told int

	// Unsent is how many Go's HTTP/2 client refused by itself, before it wrote a
	// byte of them: it had picked a connection that has just ended, and does not
	// look for another one where a body cannot be rewound. Nothing of them
	// reaches a server, and none can prevent it: they are not in Failed. A
	// server that breaks connections causes them too, but never them alone.
	Unsent int

	// The latency of the answered ones: from before dialling, or from before
	// writing on a kept connection, to the last byte, without the time that
	// they are meant to take.
	Steady Latency
	Around Latency // those that were under way within Window of a mark
}

// Window is how far from a mark a request is around it.
const Window = 500 * time.Millisecond

// Latency describes how long N requests took.
type Latency struct {
	N             int
	P50, P99, Max time.Duration
}

// measure sorts took.
func measure(took []time.Duration) Latency {
	n := len(took)
	if n == 0 {
		return Latency{}
	}
	slices.Sort(took)
	return Latency{N: n, P50: took[(n-1)/2], P99: took[(n-1)*99/100], Max: took[n-1]}
}

// report is called when the clients have ended.
func (l *Load) report() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := Report{
		Target:    l.cfg.Target,
		Elapsed:   l.ended.Sub(l.started),
		Marks:     len(l.marks),
		Processes: slices.Clone(l.processes),
		Total:     l.result("total", l.clients),
	}
	for _, k := range Kinds {
		of := slices.DeleteFunc(slices.Clone(l.clients), func(c *client) bool { return c.kind != k })
		if len(of) > 0 {
			r.Kinds = append(r.Kinds, l.result(k, of))
		}
	}
	return r
}

func (l *Load) result(k Kind, clients []*client) Result {
	r := Result{Kind: k, Clients: len(clients), Failures: make(map[Failure]int), Examples: make(map[Failure][]string)}
	var steady, around []time.Duration
	for _, c := range clients {
		r.Requests += len(c.samples) + len(c.failures)
		r.Dials += c.dials
		r.Closed += c.closed
		r.Told += c.told
		for _, s := range c.samples {
			if l.marked(s) {
				around = append(around, s.took)
			} else {
				steady = append(steady, s.took)
			}
		}
		for _, f := range c.failures {
			switch {
			case f.kind == unsent:
				r.Unsent++
			case f.kind.cut() && l.crashed(f):
				r.Cut++
			default:
				r.Failed++
				r.Failures[f.kind]++
			}
		}
		for kind, texts := range c.texts {
			room := max(0, examples-len(r.Examples[kind]))
			r.Examples[kind] = append(r.Examples[kind], texts[:min(room, len(texts))]...)
		}
	}
	r.Steady, r.Around = measure(steady), measure(around)
	return r
}

func (l *Load) marked(s sample) bool {
	return slices.ContainsFunc(l.marks, func(t time.Time) bool {
		mark := t.Sub(l.started)
		return mark-Window <= s.end && s.start <= mark+Window
	})
}

func (l *Load) crashed(f failure) bool {
	return slices.ContainsFunc(l.crashes, func(s span) bool { return s.overlaps(f) })
}

// Lost says in one line for each kind of failure what was lost, with examples;
// it is empty if nothing was.
func (r Result) Lost() string {
	var b strings.Builder
	for _, f := range Failures {
		if n := r.Failures[f]; n > 0 {
			fmt.Fprintf(&b, "%d %s: %s\n", n, f, strings.Join(r.Examples[f], "; "))
		}
	}
	return b.String()
}

// String is a table, a line for each kind of client, and what was lost.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %v, answered by %d processes\n", r.Target, r.Elapsed.Round(time.Millisecond), len(r.Processes))
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\t\t\t\t\t\tsteady\t\t\taround %d marks\t\t\t\n", r.Marks)
	fmt.Fprintln(w, "clients\tn\trequests\tfailed\tcut\tdials\tp50\tp99\tmax\tp50\tp99\tmax\t")
	for _, k := range append(slices.Clone(r.Kinds), r.Total) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t\n",
			k.Kind, k.Clients, k.Requests, k.Failed, k.Cut, k.Dials, k.Steady, k.Around)
	}
	_ = w.Flush() // a strings.Builder does not fail
	b.WriteString(r.Total.Lost())
	b.WriteString(r.each("told by the server that no answer comes, and sent again", func(k Result) int { return k.Told }))
	b.WriteString(r.each("unsent, because Go's HTTP/2 client refused them itself", func(k Result) int { return k.Unsent }))
	if r.Total.Cut > 0 {
		b.WriteString("cut: on connections that a process had accepted which crashed; nobody else can answer for them\n")
	}
	return b.String()
}

// each says for which kinds there is any of what, or nothing.
func (r Report) each(what string, of func(Result) int) string {
	var some []string
	for _, k := range r.Kinds {
		if n := of(k); n > 0 {
			some = append(some, fmt.Sprintf("%s %d", k.Kind, n))
		}
	}
	if some == nil {
		return ""
	}
	return fmt.Sprintf("%s: %s\n", what, strings.Join(some, ", "))
}

// String is three cells of a table.
func (q Latency) String() string {
	if q.N == 0 {
		return "-\t-\t-"
	}
	return fmt.Sprintf("%s\t%s\t%s", short(q.P50), short(q.P99), short(q.Max))
}

// short drops what nobody reads: 1.2ms, 34ms, 560µs.
func short(d time.Duration) string {
	switch {
	case d >= 10*time.Millisecond:
		return d.Round(time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(time.Microsecond).String()
}
