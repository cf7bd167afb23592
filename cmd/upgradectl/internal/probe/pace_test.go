package probe

import (
	"testing"
	"time"
)

func TestPacerKeepsTheRate(t *testing.T) {
	p := pacer{every: 10 * time.Millisecond}
	start := time.Now()
	for i := range 5 {
		if got, want := p.take(start), start.Add(time.Duration(i)*10*time.Millisecond); !got.Equal(want) {
			t.Errorf("request %d starts at %v, want %v", i, got.Sub(start), want.Sub(start))
		}
	}
	// After a stall of a second nothing is made up for.
	later := start.Add(time.Second)
	for i := range 3 {
		if got, want := p.take(later), later.Add(time.Duration(i)*10*time.Millisecond); !got.Equal(want) {
			t.Errorf("request %d after the stall starts at %v, want %v", i, got.Sub(start), want.Sub(start))
		}
	}
}

func TestPacerWithoutARate(t *testing.T) {
	var p pacer
	now := time.Now()
	for range 3 {
		if got := p.take(now); !got.Equal(now) {
			t.Errorf("%v later", got.Sub(now))
		}
	}
}
