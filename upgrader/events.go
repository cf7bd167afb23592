package upgrader

import (
	"encoding/json"
	"os"
	"sync"
	"time"
)

// Event is something that happens to this process.
type Event struct {
	Time       time.Time     `json:"time"`
	Kind       EventKind     `json:"kind"`
	PID        int           `json:"pid"` // of this process
	Generation int           `json:"generation"`
	From       string        `json:"from,omitempty"` // EventState: as in the log
	To         string        `json:"to,omitempty"`
	Phase      Phase         `json:"phase,omitempty"`     // EventPhase, EventProgress
	Successor  int           `json:"successor,omitempty"` // its pid, in an upgrade
	Elapsed    time.Duration `json:"elapsed_ns,omitempty"`
	Text       string        `json:"text,omitempty"`    // EventProgress: what the successor says
	Err        string        `json:"err,omitempty"`     // EventState: why
	Verdict    *Verdict      `json:"verdict,omitempty"` // EventVerdict
}

// EventKind says which fields of an Event are set.
type EventKind string

// The kinds of event.
const (
	EventState    EventKind = "state"    // this process has changed its state
	EventPhase    EventKind = "phase"    // an upgrade has come to a phase
	EventProgress EventKind = "progress" // the successor is getting ready
	EventVerdict  EventKind = "verdict"  // an upgrade has ended
)

// publish tells whoever follows. It does not block.
func (r *run) publish(e Event) {
	e.Time, e.PID, e.Generation = time.Now(), os.Getpid(), r.Generation()
	if a := r.attempt; a.underWay() {
		e.Elapsed = time.Since(a.begun)
		if a.successor != nil {
			e.Successor = a.pid
		}
	}
	r.bus.publish(e)
}

// bus carries events to whoever follows. Its lock is a leaf.
type bus struct {
	mu        sync.Mutex
	followers map[*follower]struct{}
	closed    bool
}

// A follower has room for as many events as a few upgrades have. One that does
// not keep up hears no more.
type follower struct{ events chan Event }

const followerRoom = 256

func (b *bus) follow() *follower {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := &follower{make(chan Event, followerRoom)}
	if b.closed {
		close(f.events)
		return f
	}
	if b.followers == nil {
		b.followers = make(map[*follower]struct{})
	}
	b.followers[f] = struct{}{}
	return f
}

func (b *bus) leave(f *follower) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(f)
}

// drop ends f's events. Callers hold mu.
func (b *bus) drop(f *follower) {
	if _, there := b.followers[f]; there {
		delete(b.followers, f)
		close(f.events)
	}
}

func (b *bus) publish(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for f := range b.followers {
		select {
		case f.events <- e:
		default:
			b.drop(f)
		}
	}
}

func (b *bus) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for f := range b.followers {
		b.drop(f)
	}
}

// deliver calls Options.OnEvent for each event, in order.
func (u *Upgrader) deliver(f *follower) {
	for e := range f.events {
		u.options.OnEvent(e)
	}
}

func encoded(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types have no such value
	}
	return b
}
