package probe

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-handover/handover/internal/proctest/load"
)

// The size of a picture and of what is around its axes, in pixels.
const (
	plotWidth    = 960
	plotHeight   = 480
	legendWidth  = 170
	marginLeft   = 70
	marginTop    = 40
	marginBottom = 50
	legendLine   = 17
)

// legendPIDs is how many processes the legend names, if there are more.
const legendPIDs = 16

// color is one of SVG's.
type color string

var (
	// pidColors are told apart by the colour-blind too, and none is red. So that
	// neighbours differ, they are used in turn.
	pidColors   = []color{"#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"}
	untoldColor = color("#999999")
	lossColor   = color("#D00000")
	cutColor    = color("#000000")
	gridColor   = color("#E8E8E8")
	axisColor   = color("#222222")
)

// lineStyle is how a line is drawn; no dashes are a solid one.
type lineStyle struct {
	color  color
	dashes string
}

// markLines are how the marks are drawn.
var markLines = map[markKind]lineStyle{
	markUpgrade:    {"#404040", "4,3"},
	markConfirmed:  {"#008040", ""},
	markFailed:     {"#B03090", "2,2"},
	markRolledBack: {"#B03090", ""},
	markCommand:    {"#808080", "1,3"},
}

// point is one of the picture or, in an outline, of a square from -1 to 1.
type point struct{ x, y float64 }

// outline is a glyph of lines: dots would not be noticed among thousands.
type outline [][]point

var (
	cross    = outline{{{-1, -1}, {1, 1}}, {{-1, 1}, {1, -1}}}
	plus     = outline{{{-1, 0}, {1, 0}}, {{0, -1}, {0, 1}}}
	triangle = outline{{{-1, 1}, {1, 1}, {0, -1}, {-1, 1}}}
	pointed  = outline{{{-1, -1}, {1, -1}, {0, 1}, {-1, -1}}}
	square   = outline{{{-1, -1}, {1, -1}, {1, 1}, {-1, 1}, {-1, -1}}}
	diamond  = outline{{{-1, 0}, {0, -1}, {1, 0}, {0, 1}, {-1, 0}}}
	star     = append(cross[:2:2], plus...)
	glass    = outline{{{-1, -1}, {1, 1}, {-1, 1}, {1, -1}, {-1, -1}}}
	bars     = outline{{{-1, .5}, {1, .5}}, {{-1, -.5}, {1, -.5}}}
)

// lossGlyphs tell the kinds of loss apart.
var lossGlyphs = map[load.Failure]outline{
	load.Refused: cross, load.Reset: plus, load.EOF: triangle, load.Truncated: pointed, load.Timeout: square,
	load.TLS: diamond, load.Rejected: star, load.Other: glass, statusLoss: bars,
}

// glyph is what stands for a request: a dot if it has no shape.
type glyph struct {
	color color
	shape outline
}

// plot writes the picture. It is called after report.
func (p *probe) plot(file string) error { return os.WriteFile(file, p.picture(), 0o666) }

// picture is an SVG of the latency over time. Its legend is beside it, where it
// hides nothing.
func (p *probe) picture() []byte {
	a := p.all()
	pic := &picture{span: p.ended.Sub(p.started)}
	pic.lowest, pic.highest = decades(a)
	fmt.Fprintf(&pic.svg, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="Liberation Sans,Arial,Helvetica,sans-serif">`+"\n",
		plotWidth, plotHeight)
	fmt.Fprintf(&pic.svg, `<rect width="%d" height="%d" style="fill:#FFFFFF"/>`+"\n", plotWidth, plotHeight)
	pic.axes(a)
	pic.addMarks(a)
	pic.addAnswers(a)
	pic.addLosses(a)
	pic.svg.WriteString("</svg>\n")
	return pic.svg.Bytes()
}

// picture is one that is being drawn.
type picture struct {
	svg             bytes.Buffer
	span            time.Duration // of the x axis
	lowest, highest float64       // of the y axis
	legend          int           // lines
}

// x and y are where a time in seconds and a latency in milliseconds are.
func (pic *picture) x(seconds float64) float64 {
	return marginLeft + (plotWidth-marginLeft-legendWidth)*seconds/pic.span.Seconds()
}

func (pic *picture) y(ms float64) float64 {
	part := math.Log(ms/pic.lowest) / math.Log(pic.highest/pic.lowest)
	return plotHeight - marginBottom - (plotHeight-marginTop-marginBottom)*part
}

// text draws it around, or from, a point: anchor is middle, start or end.
func (pic *picture) text(at point, size int, anchor, more, text string) {
	fmt.Fprintf(&pic.svg, `<text x="%.6g" y="%.6g" font-size="%d" text-anchor="%s"%s>`, at.x, at.y, size, anchor, more)
	_ = xml.EscapeText(&pic.svg, []byte(text)) // a buffer takes all
	pic.svg.WriteString("</text>\n")
}

func (pic *picture) line(from, to point, s lineStyle) {
	dashes := ""
	if s.dashes != "" {
		dashes = ";stroke-dasharray:" + s.dashes
	}
	fmt.Fprintf(&pic.svg, `<path d="M%.6g,%.6gL%.6g,%.6g" style="fill:none;stroke:%s;stroke-width:1%s"/>`+"\n", from.x, from.y, to.x, to.y, s.color, dashes)
}

func (pic *picture) glyph(at point, radius float64, g glyph) {
	if g.shape == nil {
		fmt.Fprintf(&pic.svg, `<path d="M%.6g,%.6ga%.6[3]g,%.6[3]g 0 1 0 %.6[4]g,0a%.6[3]g,%.6[3]g 0 1 0 -%.6[4]g,0" style="fill:%[5]s"/>`+"\n",
			at.x-radius, at.y, radius, 2*radius, g.color)
		return
	}
	var d strings.Builder
	for _, line := range g.shape {
		for i, p := range line {
			fmt.Fprintf(&d, "%c%.6g,%.6g", "ML"[min(i, 1)], at.x+p.x*radius, at.y+p.y*radius)
		}
	}
	fmt.Fprintf(&pic.svg, `<path d="%s" style="fill:none;stroke:%s;stroke-width:1.4"/>`+"\n", &d, g.color)
}

// explain adds a line to the legend, and returns where its sign is.
func (pic *picture) explain(label string) point {
	at := point{plotWidth - legendWidth + 20, marginTop + float64(pic.legend*legendLine)}
	pic.legend++
	pic.text(point{at.x + 14, at.y + 4}, 11, "start", "", label)
	return at
}

// points are where requests are in the picture, by what they have in common: a
// pid or a kind of loss.
type points[K comparable] map[K][]point

func (ps points[K]) add(key K, s sample) {
	ps[key] = append(ps[key], point{s.start.Seconds(), milliseconds(s.took)})
}

// all is what there is to draw.
type all struct {
	answered  points[int]
	lost      points[load.Failure]
	cut       []point
	processes []process
	marks     []mark
}

func (p *probe) all() all {
	a := all{answered: make(points[int]), lost: make(points[load.Failure]), processes: p.processes, marks: p.marks}
	cut := make(points[bool])
	for _, r := range p.rows {
		for _, c := range r.clients {
			for _, s := range c.samples {
				a.answered.add(s.pid, s)
			}
			for _, l := range c.losses {
				if p.cut(l) {
					cut.add(true, l.sample)
				} else {
					a.lost.add(l.kind, l.sample)
				}
			}
		}
	}
	a.cut = cut[true]
	return a
}

// each yields all points, set by set.
func (a all) each(yield func([]point) bool) {
	for _, xys := range a.answered {
		if !yield(xys) {
			return
		}
	}
	for _, xys := range a.lost {
		if !yield(xys) {
			return
		}
	}
	yield(a.cut)
}

// milliseconds are never 0, which has no place on a logarithmic axis.
func milliseconds(d time.Duration) float64 {
	return float64(max(d, time.Microsecond)) / float64(time.Millisecond)
}

func (pic *picture) axes(a all) {
	const left, right, top, bottom = marginLeft, plotWidth - legendWidth, marginTop, plotHeight - marginBottom
	for _, t := range secondTicks(pic.span.Seconds()) {
		x := pic.x(t.value)
		pic.line(point{x, top}, point{x, bottom}, lineStyle{color: gridColor})
		pic.line(point{x, bottom}, point{x, bottom + 5}, lineStyle{color: axisColor})
		pic.text(point{x, bottom + 18}, 11, "middle", "", t.label)
	}
	for _, t := range decadeTicks(pic.lowest, pic.highest) {
		y, length := pic.y(t.value), 3.0
		if t.label != "" {
			length = 6
			pic.line(point{left, y}, point{right, y}, lineStyle{color: gridColor})
			pic.text(point{left - 10, y + 4}, 11, "end", "", t.label)
		}
		pic.line(point{left - length, y}, point{left, y}, lineStyle{color: axisColor})
	}
	pic.line(point{left, top}, point{left, bottom}, lineStyle{color: axisColor})
	pic.line(point{left, bottom}, point{right, bottom}, lineStyle{color: axisColor})
	pic.text(point{(left + right) / 2, 22}, 14, "middle", "", a.title(pic.span))
	pic.text(point{(left + right) / 2, plotHeight - 12}, 12, "middle", "", "time since the start (s)")
	middle := point{18, (top + bottom) / 2}
	pic.text(middle, 12, "middle", fmt.Sprintf(` transform="rotate(-90 %g %g)"`, middle.x, middle.y), "latency (ms)")
}

func (a all) title(span time.Duration) string {
	requests, lost := 0, 0
	for xys := range a.each {
		requests += len(xys)
	}
	for _, xys := range a.lost {
		lost += len(xys)
	}
	return fmt.Sprintf("%d requests in %v, %d lost", requests, span.Round(100*time.Millisecond), lost)
}

// decades is the range of all points, in whole powers of ten.
func decades(a all) (lowest, highest float64) {
	lowest, highest = math.Inf(1), 0
	for xys := range a.each {
		for _, xy := range xys {
			lowest, highest = min(lowest, xy.y), max(highest, xy.y)
		}
	}
	if highest == 0 {
		return 1, 10
	}
	lowest = math.Pow(10, math.Floor(math.Log10(lowest)))
	highest = math.Pow(10, math.Ceil(math.Log10(highest)))
	return lowest, max(highest, 10*lowest)
}

// tick is one of an axis, a small one if it has no label.
type tick struct {
	value float64
	label string
}

// decadeTicks labels the powers of ten.
func decadeTicks(lowest, highest float64) (ticks []tick) {
	for e := math.Round(math.Log10(lowest)); e <= math.Round(math.Log10(highest)); e++ {
		decade := math.Pow(10, e)
		ticks = append(ticks, tick{decade, fmt.Sprintf("%g", decade)})
		for i := 2.0; i < 10 && i*decade < highest; i++ {
			ticks = append(ticks, tick{value: i * decade})
		}
	}
	return ticks
}

// secondTicks are as many as can be read, from 0, at round numbers.
func secondTicks(highest float64) (ticks []tick) {
	const most = 12
	step := math.Pow(10, math.Floor(math.Log10(highest/most)))
	for _, times := range []float64{2, 2.5, 2} { // 2, 5, 10
		if highest/step > most {
			step *= times
		}
	}
	for i := 0; float64(i)*step <= highest; i++ {
		x := float64(i) * step
		ticks = append(ticks, tick{x, strconv.FormatFloat(x, 'g', 6, 64)})
	}
	return ticks
}

func (pic *picture) addMarks(a all) {
	for _, kind := range markKinds {
		of := slices.DeleteFunc(slices.Clone(a.marks), func(m mark) bool { return m.kind != kind || m.at > pic.span })
		for _, m := range of {
			x := pic.x(m.at.Seconds())
			pic.line(point{x, marginTop}, point{x, plotHeight - marginBottom}, markLines[kind])
		}
		if len(of) > 0 {
			at := pic.explain(fmt.Sprintf("%s: %d", kind, len(of)))
			pic.line(point{at.x - 8, at.y}, point{at.x + 8, at.y}, markLines[kind])
		}
	}
}

// addAnswers draws the processes in the order in which they came.
func (pic *picture) addAnswers(a all) {
	if xys := a.answered[0]; xys != nil {
		pic.scatter("pid not told: "+strconv.Itoa(len(xys)), xys, dotRadius, glyph{color: untoldColor})
	}
	for i, q := range a.processes {
		xys, label := a.answered[q.pid], ""
		switch {
		case i < legendPIDs || len(a.processes) == legendPIDs+1:
			label = fmt.Sprintf("pid %d: %d", q.pid, len(xys))
		case i == legendPIDs:
			label = fmt.Sprintf("and %d pids more", len(a.processes)-i)
		}
		pic.scatter(label, xys, dotRadius, glyph{color: pidColors[i%len(pidColors)]})
	}
}

// The sizes of what stands for a request.
const (
	dotRadius  = 1.6
	lossRadius = 4.5
)

// addLosses draws each loss when its request began, as high as its client waited.
func (pic *picture) addLosses(a all) {
	for _, kind := range failures {
		if xys := a.lost[kind]; xys != nil {
			pic.scatter(fmt.Sprintf("lost, %s: %d", kind, len(xys)), xys, lossRadius, glyph{lossColor, lossGlyphs[kind]})
		}
	}
	if a.cut != nil {
		pic.scatter(fmt.Sprintf("cut by a crash: %d", len(a.cut)), a.cut, lossRadius, glyph{cutColor, cross})
	}
}

// scatter draws points, and names them in the legend unless label is empty.
func (pic *picture) scatter(label string, xys []point, radius float64, g glyph) {
	for _, at := range pic.thinned(xys) {
		pic.glyph(at, radius, g)
	}
	if label != "" {
		pic.glyph(pic.explain(label), max(radius, 3.5), g) // large enough to see its colour
	}
}

// thinned is where points are in the picture, without those that nobody could
// tell from their neighbours: a picture of a million requests is as large as
// one of some ten thousand.
func (pic *picture) thinned(xys []point) (at []point) {
	type pixel struct{ x, y int }
	taken := make(map[pixel]bool)
	for _, xy := range xys {
		p := point{pic.x(xy.x), pic.y(xy.y)}
		if on := (pixel{int(p.x), int(p.y)}); !taken[on] {
			taken[on] = true
			at = append(at, p)
		}
	}
	return at
}
