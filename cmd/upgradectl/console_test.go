package main

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"
)

// What takes longer than a second shows that it goes on.
func TestProgressIsShown(t *testing.T) {
	for name, test := range map[string]struct {
		terminal bool
		wait     time.Duration
		want     string
	}{
		"quick":                 {false, 900 * time.Millisecond, ""},
		"quick, terminal":       {true, 900 * time.Millisecond, ""},
		"file":                  {false, 25500 * time.Millisecond, "upgradectl: 1 s: ready\nupgradectl: 11 s: ready\nupgradectl: 21 s: ready\n"},
		"terminal":              {true, 2500 * time.Millisecond, "\r1 s: ready\x1b[K\r2 s: ready\x1b[K\r\x1b[K"},
		"file, barely a second": {false, 1100 * time.Millisecond, "upgradectl: 1 s: ready\n"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var b bytes.Buffer
				c := &console{out: &b, err: &b, terminal: test.terminal}
				c.await("re%s", "ady")
				stop := c.progress()
				time.Sleep(test.wait)
				stop()
				if b.String() != test.want {
					t.Errorf("%q, want %q", b.String(), test.want)
				}
			})
		})
	}
}

func TestLinesAndProgressDoNotMix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		c := &console{out: &b, err: &b, terminal: true}
		c.await("a\x1b[2J")
		stop := c.progress()
		time.Sleep(1500 * time.Millisecond)
		c.line("hello")
		c.line("ready")
		stop()
		if want := "\r1 s: a\uFFFD[2J\x1b[K\r\x1b[Khello\nready\n"; b.String() != want {
			t.Errorf("%q, want %q", b.String(), want)
		}
	})
}
