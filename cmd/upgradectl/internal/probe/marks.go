package probe

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// mark is a moment at which something happened to the server.
type mark struct {
	at   time.Duration // since the probe was started
	kind markKind
	text string
}

// markKind is one of those below.
type markKind string

const (
	markUpgrade    markKind = "new process"    // answers, or is on probation
	markConfirmed  markKind = "confirmed"      // the old one drains
	markFailed     markKind = "failed upgrade" // the old one never stopped serving
	markRolledBack markKind = "rolled back"
	markCommand    markKind = "mark" // by -commands
)

var markKinds = []markKind{markUpgrade, markConfirmed, markFailed, markRolledBack, markCommand}

// process is one that has answered.
type process struct {
	pid         int
	answers     int
	first, last time.Duration
}

// span is a time in which a process has died.
type span struct{ from, to time.Duration }

func (s span) contains(at time.Duration) bool { return s.from <= at && at <= s.to }

func (p *probe) mark(at time.Time, kind markKind, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.marks = append(p.marks, mark{at.Sub(p.started), kind, text})
}

// saw notes who has answered. One that was not seen before is an upgrade,
// unless somebody else tells of them.
func (p *probe) saw(pid int, when time.Time) {
	if pid == 0 {
		return
	}
	at := when.Sub(p.started)
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range slices.Backward(p.processes) { // the latest answers most
		if q := &p.processes[i]; q.pid == pid {
			q.answers++
			q.last = max(q.last, at)
			return
		}
	}
	p.processes = append(p.processes, process{pid, 1, at, at})
	if len(p.processes) > 1 && !p.told {
		p.marks = append(p.marks, mark{at, markUpgrade, fmt.Sprintf("process %d answers", pid)})
	}
}

// latest is the process that was seen first most recently; 0: none.
func (p *probe) latest() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.processes) == 0 {
		return 0
	}
	return p.processes[len(p.processes)-1].pid
}

// obey carries out commands. What it returns is done when there are no more, or
// with ctx.
func (p *probe) obey(ctx context.Context, r io.Reader) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() { // ends with its input
		defer cancel()
		since := p.started
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			command, text, _ := strings.Cut(lines.Text(), " ")
			now := time.Now()
			switch command {
			case "mark":
				since = now
				p.mark(now, markCommand, text)
			case "crashed":
				p.crash(since, now)
			case "say":
				p.note.Store(&text)
			}
		}
	}()
	return ctx
}

// crash excuses, and counts anew what is excused.
func (p *probe) crash(from, to time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.crashes = append(p.crashes, span{from.Sub(p.started), to.Sub(p.started)})
	cuts := 0
	for _, r := range p.rows {
		for _, c := range r.clients {
			cuts += c.countLosses(p.cut)
		}
	}
	p.cuts.Store(int64(cuts))
}
