package upgrader

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-handover/handover/internal/wire"
)

// Status is what a process knows of the service at one moment. Its JSON is that
// of "upgradectl status -json"; fields may be added to it.
type Status struct {
	// Processes are the generations that are there, the newest first: a successor
	// while there is one, the standbys in the order of their queue, this one, and
	// the predecessors that still drain. In JSON, "self" marks this one.
	Processes []Process `json:"processes"`

	// Sockets are what this process holds by name.
	Sockets []Socket `json:"sockets"`

	// Last is the verdict on the latest upgrade, by whatever process. Nil: there
	// was none.
	Last *Verdict `json:"last,omitempty"`

	// Counters go on from generation to generation.
	Counters Counters `json:"counters"`

	// Log is where the standard error of this process goes, and that of its
	// successor: a path, or what the system calls it. Empty: not known.
	Log string `json:"log,omitempty"`
}

// Process is one generation of the service.
type Process struct {
	Generation  int       `json:"generation"`
	PID         int       `json:"pid"`
	Self        bool      `json:"self,omitempty"`
	Version     string    `json:"version,omitempty"`
	Revision    string    `json:"revision,omitempty"` // of the version control system
	State       string    `json:"state"`              // as in the log; of a successor under way: the phase
	Since       time.Time `json:"since,omitzero"`     // in that state
	Connections *int      `json:"connections,omitempty"`
	Deadline    time.Time `json:"deadline,omitzero"` // of a drain: when it is told to hurry
}

// Socket is one that is held by name.
type Socket struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"` // listener, packet or file
	Network string `json:"network,omitempty"`
	Address string `json:"address,omitempty"`
}

// Verdict is how an upgrade has ended.
type Verdict struct {
	Result   Result        `json:"result"`
	PID      int           `json:"pid,omitempty"`    // of the successor; 0: none was started
	Phase    Phase         `json:"phase,omitempty"`  // in which it ended; empty: it was confirmed
	Reason   string        `json:"reason,omitempty"` // why
	Text     string        `json:"text,omitempty"`   // the successor's last words
	Ended    time.Time     `json:"ended"`
	Duration time.Duration `json:"duration_ns"` // 0: not known, because the predecessor died
}

// Result is a verdict in a word.
type Result string

// The results of an upgrade.
const (
	Upgraded   Result = "upgraded"
	Failed     Result = "failed"      // the old process has never stopped serving
	RolledBack Result = "rolled back" // the new process served, and the old one does again
)

// Counters tell how upgrades have ended since the service was started.
type Counters struct {
	Upgrades  int `json:"upgrades"`
	Failures  int `json:"failures"`
	Rollbacks int `json:"rollbacks"`
	Killed    int `json:"killed"` // generations that had not drained when they were ended
}

// Status returns what this process knows. It does not block for longer than a
// file operation of an upgrade takes, and goes on to answer when Done is closed.
func (u *Upgrader) Status() Status {
	reply := make(chan Status, 1)
	select {
	case u.looks <- reply:
		return <-reply
	case <-u.gone:
		return u.farewell
	}
}

// CountConnections tells how to count the connections that are open in this
// process, for Status: of httpgrace.Server, Stats().Total. count is called at
// any time, from any goroutine. It must not block, nor call methods of u.
func (u *Upgrader) CountConnections(count func() int) { u.count.Store(&count) }

// status is run's: it owns what is in it.
func (r *run) status() Status {
	s := Status{
		Sockets:  r.sockets.list(),
		Counters: Counters(r.counters),
		Log:      r.logName,
	}
	if r.last != nil {
		last := *r.last
		s.Last = &last
	}
	if a := r.attempt; a.successor != nil && r.state != onProbation {
		p := asProcess(wire.Process{Generation: r.Generation() + 1, PID: a.pid, Build: a.build, State: string(a.phase), Since: a.since})
		if a.phase == PhaseProbation {
			p.State = onProbation.String()
		}
		s.Processes = append(s.Processes, p)
	}
	if r.heir != nil {
		s.Processes = append(s.Processes, asProcess(wire.Process{
			Generation: r.Generation() + 1, PID: r.heir.pid, Build: r.heir.build, State: serving.String(), Since: r.since,
		}))
	}
	for _, st := range r.standbys {
		s.Processes = append(s.Processes, asProcess(st.process(r.Generation()+1)))
	}
	for _, p := range r.line() {
		s.Processes = append(s.Processes, asProcess(p))
		s.Processes[len(s.Processes)-1].Self = p.PID == os.Getpid() && p.Generation == r.Generation()
	}
	return s
}

// line is this process and those that it has replaced, as far as they are there.
func (r *run) line() []wire.Process {
	line := []wire.Process{r.self()}
	if !r.pred.alive() {
		return line
	}
	if len(r.elders) > 0 {
		return append(line, r.elders...)
	}
	p := wire.Process{Generation: r.Generation() - 1, PID: r.pred.pid, Build: r.pred.manifest.Build, Since: r.since}
	switch r.state {
	case starting, waiting:
		p.State = upgrading.String()
	case onProbation:
		p.State = probation.String()
	default:
		p.State = draining.String() // and it will say so
	}
	return append(line, p)
}

func (r *run) self() wire.Process {
	p := wire.Process{
		Generation: r.Generation(), PID: os.Getpid(), Build: r.build,
		State: r.state.String(), Since: r.since, Connections: r.connections(),
	}
	if r.state.final() && r.options.DrainTimeout > 0 {
		p.Deadline = r.since.Add(r.options.DrainTimeout)
	}
	return p
}

func (u *Upgrader) connections() *int {
	count := u.count.Load()
	if count == nil {
		return nil
	}
	n := (*count)()
	return &n
}

func asProcess(p wire.Process) Process {
	version, revision, _ := strings.Cut(p.Build, " ")
	return Process{
		Generation: p.Generation, PID: p.PID, Version: version, Revision: revision,
		State: p.State, Since: p.Since, Connections: p.Connections, Deadline: p.Deadline,
	}
}

// list describes what is open, by name.
func (ss *sockets) list() []Socket {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	list := []Socket{}
	for _, s := range ss.named {
		if (s.conn != nil || s.parked != nil) && s.Name != turnName && !s.isState() {
			list = append(list, Socket{Name: s.Name, Kind: s.Kind, Network: s.Network, Address: s.Address})
		}
	}
	slices.SortFunc(list, func(a, b Socket) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// drainReport is how often a draining process tells its successor who drains.
const drainReport = time.Second

// reportDrain does that, as long as somebody can hear it.
func (r *run) reportDrain() {
	r.draining = nil
	if r.heir == nil {
		return
	}
	r.draining = time.After(drainReport)
	_ = r.heir.Send(wire.Draining{Processes: r.line()}) // if it is gone, its channel says so next
}

// judge keeps the verdict on an attempt.
func (r *run) judge(v Verdict) {
	switch v.Result {
	case Upgraded:
		r.counters.Upgrades++
	case Failed:
		r.counters.Failures++
	case RolledBack:
		r.counters.Rollbacks++
	}
	v.Ended = time.Now()
	r.last = &v
	r.publish(Event{Kind: EventVerdict, Verdict: &v})
}

// failedVerdict is the verdict on an attempt that ended with err.
func failedVerdict(result Result, a *attempt, err error) Verdict {
	v := Verdict{Result: result, Phase: a.phase, Reason: err.Error(), Text: a.text, Duration: time.Since(a.begun)}
	if e := (*SuccessorError)(nil); errors.As(err, &e) {
		v.Phase, v.PID, v.Text, v.Reason = e.Phase, e.PID, e.Text, e.Err.Error()
		if e.State != nil {
			v.Reason += fmt.Sprintf(" (%v)", e.State)
		}
	} else if a.successor != nil {
		v.PID = a.pid
	}
	return v
}

// String is one line for people.
func (v Verdict) String() string {
	var b strings.Builder
	b.WriteString(string(v.Result))
	if v.PID != 0 {
		fmt.Fprintf(&b, " (pid %d)", v.PID)
	}
	if v.Duration > 0 {
		fmt.Fprintf(&b, " in %v", v.Duration.Round(time.Millisecond))
	}
	if v.Reason != "" {
		fmt.Fprintf(&b, ": %s", v.Reason)
	}
	return b.String()
}

// Var is an expvar.Var of the Status: expvar.Publish("upgrader", up.Var()).
func (u *Upgrader) Var() interface{ String() string } { return statusVar{u} }

type statusVar struct{ u *Upgrader }

func (v statusVar) String() string {
	b, err := json.Marshal(v.u.Status())
	if err != nil {
		return "null" // it has no such value
	}
	return string(b)
}

// logName is where standard error goes, as /proc says it.
func logName() string {
	name, err := os.Readlink("/proc/self/fd/2")
	if err != nil {
		return ""
	}
	return name
}
