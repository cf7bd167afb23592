package probe

import (
	"fmt"
	"io"
	"os"
	"time"
)

// live shows how it goes, until the function that it returns is called: a line
// each second, or on a terminal one that changes.
func (p *probe) live(w io.Writer) (quiet func()) {
	format, every := "%s\n", time.Second
	wipe := ""
	if isTerminal(w) {
		format, every, wipe = "\r%s\033[K", 200*time.Millisecond, "\r\033[K"
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(every)
		defer tick.Stop()
		before := int64(0)
		for {
			select {
			case <-stop:
				fmt.Fprint(w, wipe)
				return
			case <-tick.C:
				n := p.answered.Load() + p.lost.Load()
				fmt.Fprintf(w, format, p.line(float64(n-before)/every.Seconds()))
				before = n
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped
	}
}

// line is the live line; perSecond is the rate since the last one.
func (p *probe) line(perSecond float64) string {
	answered, lost, cuts := p.answered.Load(), p.lost.Load(), p.cuts.Load()
	text := fmt.Sprintf("%4.0f s  %d requests  %d lost", time.Since(p.started).Seconds(), answered+lost, lost-cuts)
	if cuts > 0 {
		text += fmt.Sprintf("  %d cut", cuts)
	}
	text += fmt.Sprintf("  %.0f/s", perSecond)
	if slowest := p.slowest.Swap(0); slowest > 0 {
		text += fmt.Sprintf("  slowest %v", short(time.Duration(slowest)))
	}
	if pid := p.latest(); pid != 0 {
		text += fmt.Sprintf("  pid %d", pid)
	}
	if note := p.note.Load(); note != nil {
		text += "  " + *note
	}
	return text
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}

// short drops what nobody reads: 1.2ms, 34ms, 560µs.
func short(d time.Duration) time.Duration {
	switch {
	case d >= 10*time.Millisecond:
		return d.Round(time.Millisecond)
	case d >= time.Millisecond:
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Microsecond)
}
