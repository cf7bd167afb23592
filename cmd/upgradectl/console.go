package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"
)

const (
	progressFirst = time.Second      // what takes longer shows that it goes on
	progressEvery = 10 * time.Second // where a line cannot be replaced
)

// console is where the operator reads. Between the lines of what has happened
// it tells what is waited for, on a terminal in a line that is replaced.
type console struct {
	out, err io.Writer
	terminal bool // err is one

	mu      sync.Mutex
	begun   time.Time
	awaited string
	shown   bool          // a line that is to be replaced
	next    time.Duration // when the next one is due
}

func newConsole(out, err io.Writer) *console {
	return &console{out: out, err: err, terminal: isTerminal(err)}
}

// line prints one line of what has happened.
func (c *console) line(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clear()
	fmt.Fprintf(c.out, format+"\n", args...)
}

// await says what is waited for from now on.
func (c *console) await(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaited = printable(fmt.Sprintf(format, args...))
}

// progress begins to show what is waited for. Call stop at the end.
func (c *console) progress() (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun, c.next = time.Now(), progressFirst
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(progressFirst)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.show()
			case <-over:
				return
			}
		}
	}()
	return func() {
		close(over)
		<-done
		c.mu.Lock()
		defer c.mu.Unlock()
		c.clear()
	}
}

func (c *console) show() {
	c.mu.Lock()
	defer c.mu.Unlock()
	elapsed := time.Since(c.begun)
	switch {
	case c.terminal:
		c.shown = true
		fmt.Fprintf(c.err, "\r%.0f s: %s\x1b[K", elapsed.Seconds(), c.awaited)
	case elapsed >= c.next:
		c.next = elapsed + progressEvery
		fmt.Fprintf(c.err, "upgradectl: %.0f s: %s\n", elapsed.Seconds(), c.awaited)
	}
}

// clear removes the line that is to be replaced. Callers hold mu.
func (c *console) clear() {
	if c.shown {
		fmt.Fprint(c.err, "\r\x1b[K")
		c.shown = false
	}
}

// printable is text that another process has sent, without what would move the
// cursor or change a colour.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == '\n' || r == '\t' {
			return r
		}
		return '\uFFFD'
	}, text)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}
