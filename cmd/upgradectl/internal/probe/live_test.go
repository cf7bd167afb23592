package probe

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest/load"
)

func TestLiveLine(t *testing.T) {
	p := &probe{started: time.Now()}
	if got, want := p.line(0), "   0 s  0 requests  0 lost  0/s"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	c := &client{probe: p, statuses: map[int]int{}, examples: map[load.Failure][]string{}}
	p.rows = []*row{{clients: []*client{c}}}
	p.saw(7, time.Now())
	c.keep(sample{took: 1234 * time.Microsecond}, 200)
	c.keep(sample{took: 56 * time.Microsecond}, 200)
	c.lose(loss{sample{start: time.Second}, load.EOF}, errRefused)
	c.lose(loss{sample{start: time.Second}, load.Refused}, errRefused) // no crash does that
	c.lose(loss{sample{start: 3 * time.Second}, load.EOF}, errRefused)
	p.crash(p.started, p.started.Add(2*time.Second))
	note := "a deploy"
	p.note.Store(&note)
	if got, want := p.line(5), "   0 s  5 requests  2 lost  1 cut  5/s  slowest 1.2ms  pid 7  a deploy"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := p.line(5); strings.Contains(got, "slowest") {
		t.Errorf("the slowest is that of the last line too: %q", got)
	}
}

// Nothing is written after quiet has returned.
func TestLiveLineEnds(t *testing.T) {
	var out bytes.Buffer
	p := &probe{started: time.Now()}
	quiet := p.live(&out)
	quiet()
	if out.Len() > 0 {
		t.Errorf("%q before a second is over", out.String())
	}
}
