package probe

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest/load"
)

// drawing is what an SVG shows.
type drawing struct {
	texts []string
	paths map[string]int // by the value of stroke or fill
}

func parseSVG(t *testing.T, svg []byte) drawing {
	t.Helper()
	d := drawing{paths: make(map[string]int)}
	decoder := xml.NewDecoder(strings.NewReader(string(svg)))
	inText := false
	for {
		token, err := decoder.Token()
		switch {
		case errors.Is(err, io.EOF):
			return d
		case err != nil:
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			inText = token.Name.Local == "text"
			if token.Name.Local == "path" {
				d.paths[paint(token)]++
			}
		case xml.EndElement:
			inText = false
		case xml.CharData:
			if inText {
				d.texts = append(d.texts, string(token))
			}
		}
	}
}

// paint is the colour of a path.
func paint(path xml.StartElement) string {
	fill, stroke := "", ""
	for _, a := range path.Attr {
		if a.Name.Local != "style" {
			continue
		}
		for property := range strings.SplitSeq(a.Value, ";") {
			name, value, _ := strings.Cut(strings.TrimSpace(property), ":")
			switch name {
			case "fill":
				fill = value
			case "stroke":
				stroke = value
			}
		}
	}
	if fill == "none" {
		return "stroke " + stroke
	}
	return "fill " + fill
}

// scene is a probe that has seen two processes, one upgrade, and losses.
func scene() *probe {
	p := &probe{started: time.Now()}
	p.ended = p.started.Add(10 * time.Second)
	p.processes = []process{{pid: 100}, {pid: 200}}
	p.marks = []mark{
		{at: 4 * time.Second, kind: markUpgrade},
		{at: 5 * time.Second, kind: markConfirmed},
		{at: 8 * time.Second, kind: markUpgrade},
		{at: 9 * time.Second, kind: markRolledBack},
	}
	p.crashes = []span{{8 * time.Second, 9 * time.Second}}
	c := &client{probe: p}
	at := func(seconds, ms float64) sample {
		return sample{start: time.Duration(seconds * float64(time.Second)), took: time.Duration(ms * float64(time.Millisecond))}
	}
	for i := range 40 {
		s := at(float64(i)/4, 0.3+float64(i)/10)
		switch {
		case i < 5: // it does not tell
		case i < 20:
			s.pid = 100
		default:
			s.pid = 200
		}
		c.samples = append(c.samples, s)
	}
	for i := range 3 {
		c.losses = append(c.losses, loss{at(4.2+float64(i)/10, 2), load.EOF})
	}
	c.losses = append(c.losses,
		loss{at(4.5, 1), load.Refused}, loss{at(4.6, 1000), load.Timeout},
		loss{at(8.2, 1), load.Reset}, loss{at(8.4, 1), load.EOF}) // these two are cut
	p.rows = []*row{{kind: "keep", clients: []*client{c}}}
	return p
}

func TestPictureShowsEverything(t *testing.T) {
	svg := scene().picture()
	d := parseSVG(t, svg)
	for _, text := range []string{
		"time since the start (s)", "latency (ms)", // the axes, with their units
		"0.1", "1", "10", "100", "1000", // the latency's decades
		"0", "2", "4", "6", "8", "10", // the seconds
		"47 requests in 10s, 5 lost",
		"pid not told: 5", "pid 100: 15", "pid 200: 20",
		"lost, eof: 3", "lost, refused: 1", "lost, timeout: 1", "cut by a crash: 2",
		"new process: 2", "confirmed: 1", "rolled back: 1",
	} {
		if !slices.Contains(d.texts, text) {
			t.Errorf("no %q among %q", text, d.texts)
		}
	}
	for _, text := range d.texts {
		if strings.HasPrefix(text, string(markFailed)) || strings.HasPrefix(text, "lost, tls") {
			t.Errorf("the legend has %q, of which there is none", text)
		}
	}
	// One path each, and one in the legend.
	for what, want := range map[string]int{
		"fill #999999":   5 + 1,  // not told
		"fill #0072B2":   15 + 1, // pid 100
		"fill #E69F00":   20 + 1, // pid 200
		"stroke #D00000": 5 + 3,  // lost, of three kinds
		"stroke #404040": 2 + 1,  // new process
		"stroke #008040": 1 + 1,  // confirmed
		"stroke #B03090": 1 + 1,  // rolled back
	} {
		if d.paths[what] != want {
			t.Errorf("%d paths with %s, want %d; there are %v", d.paths[what], what, want, d.paths)
		}
	}
}

func TestPictureOfNothing(t *testing.T) {
	p := &probe{started: time.Now(), rows: []*row{{clients: []*client{{}}}}}
	p.ended = p.started.Add(time.Millisecond)
	svg := p.picture()
	if d := parseSVG(t, svg); !slices.Contains(d.texts, "0 requests in 0s, 0 lost") {
		t.Errorf("%q", d.texts)
	}
}

func TestLegendOfManyProcessesEnds(t *testing.T) {
	p := scene()
	p.processes = nil
	c := p.rows[0].clients[0]
	c.samples = nil
	for i := range 100 {
		p.processes = append(p.processes, process{pid: 1000 + i})
		c.samples = append(c.samples, sample{start: time.Duration(i) * 100 * time.Millisecond, took: time.Millisecond, pid: 1000 + i})
	}
	svg := p.picture()
	d := parseSVG(t, svg)
	named := 0
	for _, text := range d.texts {
		if strings.HasPrefix(text, "pid ") {
			named++
		}
	}
	if named != legendPIDs || !slices.Contains(d.texts, "and 84 pids more") {
		t.Errorf("%d pids are named: %q", named, d.texts)
	}
	dots := 0
	for _, c := range pidColors {
		dots += d.paths["fill "+string(c)]
	}
	if want := 100 + legendPIDs + 1; dots != want {
		t.Errorf("%d dots, want %d", dots, want)
	}
}

// Very many requests are drawn as what can be told apart.
func TestPictureOfManyRequestsIsSmall(t *testing.T) {
	p := scene()
	c := p.rows[0].clients[0]
	c.samples = nil
	for i := range 200_000 {
		c.samples = append(c.samples, sample{
			start: time.Duration(i) * 50 * time.Microsecond, took: time.Duration(100+i%200) * time.Microsecond, pid: 100,
		})
	}
	svg := p.picture()
	d := parseSVG(t, svg)
	if n := d.paths["fill #0072B2"]; n < 10_000 || n > plotWidth*plotHeight/4 {
		t.Errorf("%d dots", n)
	}
	if !slices.Contains(d.texts, "pid 100: 200000") {
		t.Errorf("the legend counts what is drawn: %q", d.texts)
	}
}

func TestTicksAreRoundAndFew(t *testing.T) {
	for _, test := range []struct {
		highest float64
		want    string
	}{
		{0.05, "0 0.005 0.01 0.015 0.02 0.025 0.03 0.035 0.04 0.045 0.05"},
		{8, "0 1 2 3 4 5 6 7 8"},
		{30.2, "0 5 10 15 20 25 30"},
		{100, "0 10 20 30 40 50 60 70 80 90 100"},
		{3600, "0 500 1000 1500 2000 2500 3000 3500"},
	} {
		if got := labels(secondTicks(test.highest)); got != test.want {
			t.Errorf("up to %v: %s, want %s", test.highest, got, test.want)
		}
	}
	if got, want := labels(decadeTicks(0.01, 1000)), "0.01 0.1 1 10 100 1000"; got != want {
		t.Errorf("decades %s, want %s", got, want)
	}
}

func labels(ticks []tick) string {
	var text []string
	for _, tick := range ticks {
		if tick.label != "" {
			text = append(text, tick.label)
		}
	}
	return strings.Join(text, " ")
}

func TestEveryKindHasALook(t *testing.T) {
	for _, kind := range failures {
		if lossGlyphs[kind] == nil {
			t.Errorf("a loss of the kind %s has no glyph", kind)
		}
	}
	looks := make(map[string]markKind)
	for _, kind := range markKinds {
		look := markLines[kind]
		key := fmt.Sprint(look.color, look.dashes)
		if look.color == "" || looks[key] != "" {
			t.Errorf("%s looks like %s", kind, strconv.Quote(string(looks[key])))
		}
		looks[key] = kind
	}
}
