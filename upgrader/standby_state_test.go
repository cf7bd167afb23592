//go:build linux

package upgrader

import (
	"syscall"
	"testing"
)

// TestStandbyHearsWhatHasChanged: what a standby was given when it came is
// completed when it is promoted; what a second one gets later is a base of its
// own, and the first keeps what it has.
func TestStandbyHearsWhatHasChanged(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		more int // standbys behind the first
		want int // what the counter goes on with
	}{
		"the only one":          {0, 3},
		"with one that is last": {1, 2},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := withStandbys(t)
			s.config.States = &statesConfig{Counter: counterDelta}
			s.start()
			_, n := s.ask("count")
			first := s.standBy()
			_, m := s.ask("count")
			if n != 1 || m != 2 {
				t.Fatalf("the counter says %d, %d", n, m)
			}
			for range tt.more {
				s.standBy()
			}
			old, from := s.pidfile(), s.mark()
			s.signal(old, syscall.SIGUSR1)
			s.promoted(from, first.Process.Pid)
			s.gone(old)
			if _, got := s.ask("count"); got != tt.want {
				t.Errorf("the counter goes on with %d, want %d", got, tt.want)
			}
		})
	}
}

// TestTakeOverCarriesState: as a started successor gets it.
func TestTakeOverCarriesState(t *testing.T) {
	t.Parallel()
	s := carriedBy(t, takesOver)
	s.config.States = &statesConfig{Ask: []string{"s"}, Set: map[string]int{"s": 1 << 20}, Counter: counterDelta, Sum: true}
	s.start()
	for generation := 1; generation <= 3; generation++ {
		if _, n := s.ask("count"); n != generation {
			t.Errorf("the counter says %d in generation %d", n, generation)
		}
		old := s.pidfile()
		if !s.upgrade() {
			t.Fatal("take over failed")
		}
		s.gone(old)
		if size, from := s.found(generation+1, "s"); size != 1<<20 || from != generation {
			t.Errorf("generation %d has %d bytes of generation %d", generation+1, size, from)
		}
	}
}
