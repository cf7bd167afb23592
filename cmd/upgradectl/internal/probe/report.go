package probe

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/go-handover/handover/internal/proctest/load"
)

// report is what became of the requests. Its JSON is that of -json; fields may
// be added to it.
type report struct {
	Elapsed   time.Duration `json:"elapsed_ns"`
	Rate      float64       `json:"rate"`       // that was reached, a second
	AskedRate float64       `json:"asked_rate"` // 0: as many as the clients could
	Rows      []result      `json:"rows"`
	Total     result        `json:"total"`
	Processes []seen        `json:"processes"` // that have told their pid, in the order of their first answer
	Marks     []moment      `json:"marks"`
}

// result is a row of the table. Each request is answered, lost or cut.
type result struct {
	Method     string               `json:"method,omitempty"`
	URL        string               `json:"url,omitempty"`
	Kind       string               `json:"kind"` // new, keep or total
	Clients    int                  `json:"clients"`
	Requests   int                  `json:"requests"`
	Lost       int                  `json:"lost"`
	Cut        int                  `json:"cut"`
	Losses     map[load.Failure]int `json:"losses,omitempty"` // the lost ones by kind
	Examples   []string             `json:"examples,omitempty"`
	Statuses   map[int]int          `json:"statuses,omitempty"` // the answered ones
	Reconnects int                  `json:"reconnects"`         // of clients that keep their connection
	Steady     latency              `json:"steady"`
	Around     latency              `json:"around"` // under way within half a second of a mark

	label          string
	steady, around []time.Duration
}

// latency is of the requests that were answered.
type latency struct {
	N   int           `json:"n"`
	P50 time.Duration `json:"p50_ns"`
	P99 time.Duration `json:"p99_ns"`
	Max time.Duration `json:"max_ns"`
}

type seen struct {
	PID     int           `json:"pid"`
	Answers int           `json:"answers"`
	First   time.Duration `json:"first_ns"` // since the start, as Last
	Last    time.Duration `json:"last_ns"`
}

type moment struct {
	At   time.Duration `json:"at_ns"` // since the start
	Kind markKind      `json:"kind"`
	Text string        `json:"text,omitempty"`
}

// report is called after run.
func (p *probe) report() report {
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.SortStableFunc(p.marks, func(a, b mark) int { return cmp.Compare(a.at, b.at) })
	r := report{
		Elapsed: p.ended.Sub(p.started), AskedRate: p.rate,
		Total: result{Kind: "total", label: "total", Losses: map[load.Failure]int{}, Statuses: map[int]int{}},
	}
	for _, row := range p.rows {
		one := p.result(row)
		r.Total.add(one)
		one.measure()
		r.Rows = append(r.Rows, one)
	}
	r.Total.measure()
	r.Rate = float64(r.Total.Requests) / r.Elapsed.Seconds()
	for _, q := range p.processes {
		r.Processes = append(r.Processes, seen{q.pid, q.answers, q.first, q.last})
	}
	for _, m := range p.marks {
		r.Marks = append(r.Marks, moment{m.at, m.kind, m.text})
	}
	return r
}

func (p *probe) result(row *row) result {
	r := result{
		Method: row.target.ask.Method, URL: row.target.url, Kind: row.kind, Clients: len(row.clients),
		Losses: make(map[load.Failure]int), Statuses: make(map[int]int),
		label: p.label(row.target) + " " + row.kind,
	}
	examples := make(map[load.Failure][]string)
	for _, c := range row.clients {
		r.Requests += len(c.samples) + len(c.losses)
		if c.target.peer.Keep {
			r.Reconnects += max(0, c.asker.Dials()-1)
		}
		for _, s := range c.samples {
			if p.marked(s) {
				r.around = append(r.around, s.took)
			} else {
				r.steady = append(r.steady, s.took)
			}
		}
		for _, l := range c.losses {
			if p.cut(l) {
				r.Cut++
			} else {
				r.Lost++
				r.Losses[l.kind]++
			}
		}
		merge(r.Statuses, c.statuses)
		for kind, texts := range c.examples {
			examples[kind] = append(examples[kind], texts...)
		}
	}
	for _, kind := range failures {
		for _, text := range examples[kind][:min(len(examples[kind]), exampleLosses)] {
			r.Examples = append(r.Examples, fmt.Sprintf("%s: %s, %s", kind, r.label, text))
		}
	}
	return r
}

// label is short where there is one server.
func (p *probe) label(t target) string {
	first := p.rows[0].target.peer
	for _, r := range p.rows {
		if r.target.peer.Address != first.Address || (r.target.peer.TLS == nil) != (first.TLS == nil) {
			return t.ask.Method + " " + t.url
		}
	}
	return t.name()
}

// marked reports that a request was under way near a mark. The marks are in
// their order.
func (p *probe) marked(s sample) bool {
	i, _ := slices.BinarySearchFunc(p.marks, s.start-load.Window, func(m mark, from time.Duration) int { return cmp.Compare(m.at, from) })
	return i < len(p.marks) && p.marks[i].at <= s.start+s.took+load.Window
}

// cut reports that a crash has taken the request with it.
func (p *probe) cut(l loss) bool {
	return l.kind.Cut() && slices.ContainsFunc(p.crashes, func(s span) bool { return s.contains(l.start + l.took) })
}

func (r *result) add(o result) {
	r.Clients += o.Clients
	r.Requests += o.Requests
	r.Lost += o.Lost
	r.Cut += o.Cut
	r.Reconnects += o.Reconnects
	merge(r.Losses, o.Losses)
	merge(r.Statuses, o.Statuses)
	r.Examples = append(r.Examples, o.Examples...)
	r.steady = append(r.steady, o.steady...)
	r.around = append(r.around, o.around...)
}

func merge[K comparable](into, from map[K]int) {
	for k, n := range from {
		into[k] += n
	}
}

func (r *result) measure() { r.Steady, r.Around = measure(r.steady), measure(r.around) }

// measure sorts took.
func measure(took []time.Duration) latency {
	n := len(took)
	if n == 0 {
		return latency{}
	}
	slices.Sort(took)
	return latency{N: n, P50: took[(n-1)/2], P99: took[(n-1)*99/100], Max: took[n-1]}
}

func (r report) json() string {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		panic(err) // it has no value that JSON lacks
	}
	return string(b) + "\n"
}

// String is a table, and what was lost.
func (r report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v, %.0f requests/s%s%s\n", r.Elapsed.Round(time.Millisecond), r.Rate, r.pids(), r.upgrades())
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\t\t\t\t\t\tsteady\t\t\taround %d marks\t\t\t\n", len(r.Marks))
	fmt.Fprintln(w, "requests\tclients\tsent\tlost\tcut\treconnects\tp50\tp99\tmax\tp50\tp99\tmax\t")
	for _, row := range append(slices.Clone(r.Rows), r.Total) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t\n",
			row.label, row.Clients, row.Requests, row.Lost, row.Cut, row.Reconnects, row.Steady, row.Around)
	}
	_ = w.Flush() // a strings.Builder does not fail
	b.WriteString(r.statuses())
	b.WriteString(r.lost())
	if r.Total.Cut > 0 {
		b.WriteString("cut: on connections that a process had accepted which crashed; nobody else can answer for them\n")
	}
	if r.AskedRate > 0 && r.Rate < 0.9*r.AskedRate {
		fmt.Fprintf(&b, "slow: the clients made %.0f requests/s of the %.0f of -rate; more of them (-conns) might\n", r.Rate, r.AskedRate)
	}
	return b.String()
}

// pids tells the first and the last if there are many.
func (r report) pids() string {
	var pids []string
	for _, p := range r.Processes {
		pids = append(pids, fmt.Sprint(p.PID))
	}
	switch n := len(pids); {
	case n == 0:
		return ", the answers tell no pid"
	case n == 1:
		return ", answered by process " + pids[0]
	case n > 6:
		pids = append(pids[:3:3], append([]string{"…"}, pids[n-2:]...)...)
	}
	return fmt.Sprintf(", answered by %d processes (%s)", len(r.Processes), strings.Join(pids, " "))
}

// upgrades counts the marks that have a meaning.
func (r report) upgrades() string {
	n := make(map[markKind]int)
	for _, m := range r.Marks {
		n[m.Kind]++
	}
	var text strings.Builder
	for _, kind := range markKinds {
		if kind != markCommand && n[kind] > 0 {
			fmt.Fprintf(&text, ", %s %d×", kind, n[kind])
		}
	}
	return text.String()
}

// statuses tells which answers were not 2xx.
func (r report) statuses() string {
	var b strings.Builder
	for _, code := range slices.Sorted(maps.Keys(r.Total.Statuses)) {
		if code < 200 || code > 299 {
			fmt.Fprintf(&b, "answered with status %d: %d\n", code, r.Total.Statuses[code])
		}
	}
	return b.String()
}

// lost says for each kind how many, with examples.
func (r report) lost() string {
	var b strings.Builder
	for _, kind := range failures {
		if n := r.Total.Losses[kind]; n > 0 {
			fmt.Fprintf(&b, "lost, %s: %d\n", kind, n)
		}
	}
	for _, text := range r.Total.Examples[:min(len(r.Total.Examples), 10)] {
		fmt.Fprintf(&b, "  for example %s\n", text)
	}
	return b.String()
}

// String is three cells of a table.
func (l latency) String() string {
	if l.N == 0 {
		return "-\t-\t-"
	}
	return fmt.Sprintf("%v\t%v\t%v", short(l.P50), short(l.P99), short(l.Max))
}
