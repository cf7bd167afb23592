package probe

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"os"
	"slices"
	"strconv"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/go-handover/handover/internal/proctest/load"
)

// The size of a picture, in points.
const (
	plotWidth   = 960
	plotHeight  = 480
	legendWidth = 170
	margin      = 10
)

// legendPIDs is how many processes the legend names, if there are more.
const legendPIDs = 16

var (
	// pidColors are told apart by the colour-blind too, and none is red. So that
	// neighbours differ, they are used in turn.
	pidColors = []color.Color{
		color.RGBA{0x00, 0x72, 0xB2, 0xFF},
		color.RGBA{0xE6, 0x9F, 0x00, 0xFF},
		color.RGBA{0x00, 0x9E, 0x73, 0xFF},
		color.RGBA{0xCC, 0x79, 0xA7, 0xFF},
		color.RGBA{0x56, 0xB4, 0xE9, 0xFF},
	}
	untoldColor = color.RGBA{0x99, 0x99, 0x99, 0xFF}
	lossColor   = color.RGBA{0xD0, 0x00, 0x00, 0xFF}
	cutColor    = color.RGBA{0x00, 0x00, 0x00, 0xFF}
	gridColor   = color.RGBA{0xE8, 0xE8, 0xE8, 0xFF}
)

// markLines are how the marks are drawn.
var markLines = map[markKind]draw.LineStyle{
	markUpgrade:    {Color: color.RGBA{0x40, 0x40, 0x40, 0xFF}, Width: 0.8, Dashes: []vg.Length{4, 3}},
	markConfirmed:  {Color: color.RGBA{0x00, 0x80, 0x40, 0xFF}, Width: 0.8},
	markFailed:     {Color: color.RGBA{0xB0, 0x30, 0x90, 0xFF}, Width: 0.8, Dashes: []vg.Length{2, 2}},
	markRolledBack: {Color: color.RGBA{0xB0, 0x30, 0x90, 0xFF}, Width: 0.8},
	markCommand:    {Color: color.RGBA{0x80, 0x80, 0x80, 0xFF}, Width: 0.8, Dashes: []vg.Length{1, 3}},
}

// outline is a glyph of lines, in a square from -1 to 1. The library's own are
// too thin to be noticed among thousands of points.
type outline [][]vg.Point

// DrawGlyph draws it as one path.
func (o outline) DrawGlyph(c *draw.Canvas, style draw.GlyphStyle, at vg.Point) {
	var path vg.Path
	for _, line := range o {
		for i, p := range line {
			to := vg.Point{X: at.X + p.X*style.Radius, Y: at.Y + p.Y*style.Radius}
			if i == 0 {
				path.Move(to)
			} else {
				path.Line(to)
			}
		}
	}
	c.SetLineStyle(draw.LineStyle{Color: style.Color, Width: 1.4})
	c.Stroke(path)
}

var (
	cross    = outline{{{X: -1, Y: -1}, {X: 1, Y: 1}}, {{X: -1, Y: 1}, {X: 1, Y: -1}}}
	plus     = outline{{{X: -1}, {X: 1}}, {{Y: -1}, {Y: 1}}}
	triangle = outline{{{X: -1, Y: -1}, {X: 1, Y: -1}, {Y: 1}, {X: -1, Y: -1}}}
	pointed  = outline{{{X: -1, Y: 1}, {X: 1, Y: 1}, {Y: -1}, {X: -1, Y: 1}}}
	square   = outline{{{X: -1, Y: -1}, {X: 1, Y: -1}, {X: 1, Y: 1}, {X: -1, Y: 1}, {X: -1, Y: -1}}}
	diamond  = outline{{{X: -1}, {Y: -1}, {X: 1}, {Y: 1}, {X: -1}}}
	star     = append(cross[:2:2], plus...)
	glass    = outline{{{X: -1, Y: -1}, {X: 1, Y: 1}, {X: -1, Y: 1}, {X: 1, Y: -1}, {X: -1, Y: -1}}}
	bars     = outline{{{X: -1, Y: .5}, {X: 1, Y: .5}}, {{X: -1, Y: -.5}, {X: 1, Y: -.5}}}
)

// lossGlyphs tell the kinds of loss apart.
var lossGlyphs = map[load.Failure]outline{
	load.Refused: cross, load.Reset: plus, load.EOF: triangle, load.Truncated: pointed, load.Timeout: square,
	load.TLS: diamond, load.Rejected: star, load.Other: glass, statusLoss: bars,
}

// plot writes the picture. It is called after report.
func (p *probe) plot(file string) error {
	svg, err := p.picture()
	if err != nil {
		return err
	}
	return os.WriteFile(file, svg, 0o666)
}

// picture is an SVG of the latency over time.
func (p *probe) picture() ([]byte, error) {
	pic, err := p.newPicture()
	if err != nil {
		return nil, err
	}
	canvas := vgsvg.New(plotWidth, plotHeight)
	sheet := draw.New(canvas)
	sheet.FillPolygon(color.White, []vg.Point{{}, {X: plotWidth}, {X: plotWidth, Y: plotHeight}, {Y: plotHeight}})
	pic.plot.Draw(draw.Crop(sheet, margin, -legendWidth, margin, -margin))
	pic.legend.Draw(draw.Crop(sheet, plotWidth-legendWidth+margin, 0, 0, -3*margin))
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return nil, err
	}
	// The font is not embedded, and few systems have it.
	return bytes.ReplaceAll(svg.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;")), nil
}

// picture is a plot with its legend beside it, where it hides nothing.
type picture struct {
	plot   *plot.Plot
	legend plot.Legend
	span   time.Duration // of the x axis
}

func (p *probe) newPicture() (*picture, error) {
	pic := &picture{plot: plot.New(), legend: plot.NewLegend(), span: p.ended.Sub(p.started)}
	a := p.all()
	pic.axes(a)
	for _, add := range []func(all) error{pic.addMarks, pic.addAnswers, pic.addLosses} {
		if err := add(a); err != nil {
			return nil, err
		}
	}
	return pic, nil
}

// points are where requests are in the picture, by what they have in common: a
// pid or a kind of loss.
type points[K comparable] map[K]plotter.XYs

func (ps points[K]) add(key K, s sample) {
	ps[key] = append(ps[key], plotter.XY{X: s.start.Seconds(), Y: milliseconds(s.took)})
}

// all is what there is to draw.
type all struct {
	answered  points[int]
	lost      points[load.Failure]
	cut       plotter.XYs
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
func (a all) each(yield func(plotter.XYs) bool) {
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
	p := pic.plot
	sans := font.Font{Typeface: "Liberation", Variant: "Sans"}
	for style, size := range map[*text.Style]vg.Length{
		&p.Title.TextStyle: 12, &p.X.Label.TextStyle: 11, &p.Y.Label.TextStyle: 11,
		&p.X.Tick.Label: 10, &p.Y.Tick.Label: 10, &pic.legend.TextStyle: 10,
	} {
		style.Font = font.From(sans, size)
	}
	p.Title.Text, p.Title.Padding = a.title(pic.span), 8
	p.X.Label.Text, p.X.Label.Padding = "time since the start (s)", 4
	p.Y.Label.Text, p.Y.Label.Padding = "latency (ms)", 4
	p.X.Padding, p.Y.Padding = 0, 0
	p.X.Min, p.X.Max = 0, pic.span.Seconds()
	p.Y.Min, p.Y.Max = decades(a)
	p.X.Tick.Marker = secondTicks{}
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, decadeTicks{}
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = gridColor, gridColor
	p.Add(grid)
	pic.legend.Top, pic.legend.Left, pic.legend.Padding = true, true, 3
	pic.legend.YPosition = draw.PosCenter
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
			lowest, highest = min(lowest, xy.Y), max(highest, xy.Y)
		}
	}
	if highest == 0 {
		return 1, 10
	}
	lowest = math.Pow(10, math.Floor(math.Log10(lowest)))
	highest = math.Pow(10, math.Ceil(math.Log10(highest)))
	return lowest, max(highest, 10*lowest)
}

// decadeTicks labels the powers of ten.
type decadeTicks struct{}

func (decadeTicks) Ticks(lowest, highest float64) (ticks []plot.Tick) {
	for e := math.Round(math.Log10(lowest)); e <= math.Round(math.Log10(highest)); e++ {
		decade := math.Pow(10, e)
		ticks = append(ticks, plot.Tick{Value: decade, Label: fmt.Sprintf("%g", decade)})
		for i := 2.0; i < 10 && i*decade < highest; i++ {
			ticks = append(ticks, plot.Tick{Value: i * decade})
		}
	}
	return ticks
}

// secondTicks are as many as can be read, at round numbers.
type secondTicks struct{}

func (secondTicks) Ticks(lowest, highest float64) (ticks []plot.Tick) {
	const most = 12
	step := math.Pow(10, math.Floor(math.Log10((highest-lowest)/most)))
	for _, times := range []float64{2, 2.5, 2} { // 2, 5, 10
		if (highest-lowest)/step > most {
			step *= times
		}
	}
	for i := 0; lowest+float64(i)*step <= highest; i++ {
		x := lowest + float64(i)*step
		ticks = append(ticks, plot.Tick{Value: x, Label: strconv.FormatFloat(x, 'g', 6, 64)})
	}
	return ticks
}

func (pic *picture) addMarks(a all) error {
	for _, kind := range markKinds {
		of := slices.DeleteFunc(slices.Clone(a.marks), func(m mark) bool { return m.kind != kind || m.at > pic.span })
		for i, m := range of {
			x := m.at.Seconds()
			line, err := plotter.NewLine(plotter.XYs{{X: x, Y: pic.plot.Y.Min}, {X: x, Y: pic.plot.Y.Max}})
			if err != nil {
				return err
			}
			line.LineStyle = markLines[kind]
			pic.plot.Add(line)
			if i == 0 {
				pic.legend.Add(fmt.Sprintf("%s: %d", kind, len(of)), line)
			}
		}
	}
	return nil
}

// addAnswers draws the processes in the order in which they came.
func (pic *picture) addAnswers(a all) error {
	if xys := a.answered[0]; xys != nil {
		if err := pic.scatter("pid not told: "+strconv.Itoa(len(xys)), xys, answerStyle(untoldColor)); err != nil {
			return err
		}
	}
	for i, q := range a.processes {
		xys, label := a.answered[q.pid], ""
		switch {
		case i < legendPIDs || len(a.processes) == legendPIDs+1:
			label = fmt.Sprintf("pid %d: %d", q.pid, len(xys))
		case i == legendPIDs:
			label = fmt.Sprintf("and %d pids more", len(a.processes)-i)
		}
		if err := pic.scatter(label, xys, answerStyle(pidColors[i%len(pidColors)])); err != nil {
			return err
		}
	}
	return nil
}

func answerStyle(c color.Color) draw.GlyphStyle {
	return draw.GlyphStyle{Color: c, Radius: 1.3, Shape: draw.CircleGlyph{}}
}

// addLosses draws each loss when its request began, as high as its client waited.
func (pic *picture) addLosses(a all) error {
	for _, kind := range failures {
		if xys := a.lost[kind]; xys != nil {
			style := draw.GlyphStyle{Color: lossColor, Radius: 4, Shape: lossGlyphs[kind]}
			if err := pic.scatter(fmt.Sprintf("lost, %s: %d", kind, len(xys)), xys, style); err != nil {
				return err
			}
		}
	}
	if a.cut == nil {
		return nil
	}
	style := draw.GlyphStyle{Color: cutColor, Radius: 4, Shape: cross}
	return pic.scatter(fmt.Sprintf("cut by a crash: %d", len(a.cut)), a.cut, style)
}

// scatter draws points, and names them in the legend unless label is empty.
func (pic *picture) scatter(label string, xys plotter.XYs, style draw.GlyphStyle) error {
	s, err := plotter.NewScatter(pic.thinned(xys))
	if err != nil {
		return err
	}
	s.GlyphStyle = style
	pic.plot.Add(s)
	if label != "" {
		pic.legend.Add(label, thumbnail(style))
	}
	return nil
}

// thinned drops the points that nobody could tell from their neighbours: a
// picture of a million requests is as large as one of some ten thousand.
func (pic *picture) thinned(xys plotter.XYs) plotter.XYs {
	type cell struct{ x, y int }
	taken := make(map[cell]bool)
	lowest, highest := math.Log10(pic.plot.Y.Min), math.Log10(pic.plot.Y.Max)
	return slices.DeleteFunc(slices.Clone(xys), func(xy plotter.XY) bool {
		at := cell{
			int(xy.X / pic.plot.X.Max * plotWidth),
			int((math.Log10(xy.Y) - lowest) / (highest - lowest) * plotHeight),
		}
		if taken[at] {
			return true
		}
		taken[at] = true
		return false
	})
}

// thumbnail is a glyph in the legend, large enough to see its colour.
type thumbnail draw.GlyphStyle

// Thumbnail draws it.
func (t thumbnail) Thumbnail(c *draw.Canvas) {
	style := draw.GlyphStyle(t)
	style.Radius = max(style.Radius, 3)
	c.DrawGlyph(style, c.Center())
}
