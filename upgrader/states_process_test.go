//go:build linux

package upgrader

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// found waits for what a generation says of a state that it has asked for.
func (s *service) found(generation int, name string) (size, from int) {
	s.t.Helper()
	r := s.waitFor(fmt.Sprintf("state %q in generation %d", name, generation), func(r record) bool {
		return r.str("msg") == "state" && r.str("name") == name && r.num("generation") == generation
	})
	return r.num("size"), r.num("from")
}

// TestStatesThroughFourGenerations: each has what the one before it has written,
// whatever its name and size.
func TestStatesThroughFourGenerations(t *testing.T) {
	t.Parallel()
	for _, sum := range []bool{false, true} {
		t.Run(fmt.Sprint("checksum ", sum), func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			sizes := map[string]int{"empty": 0, "one": 1, "large": 1 << 20, "größe = 1&\n%": 4097, strings.Repeat("n", maxStateName): 42}
			s.config.States = &statesConfig{Set: sizes, Sum: sum}
			for name := range sizes {
				s.config.States.Ask = append(s.config.States.Ask, name)
			}
			s.start()
			for generation := 2; generation <= 5; generation++ {
				if !s.upgrade() {
					t.Fatal("upgrade failed")
				}
				for name, want := range sizes {
					size, from := s.found(generation, name)
					if size != want || size > 0 && from != generation-1 {
						t.Errorf("generation %d: %q has %d bytes of generation %d, want %d of %d", generation, name, size, from, want, generation-1)
					}
				}
			}
			for name := range sizes {
				if size, _ := s.found(1, name); size != -1 {
					t.Errorf("the first generation finds %d bytes of %q", size, name)
				}
			}
		})
	}
}

// TestStateThatABuildDoesNotKnow is ignored, and not handed on by it.
func TestStateThatABuildDoesNotKnow(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.States = &statesConfig{Set: map[string]int{"known": 10, "unknown": 1 << 20}, Counter: counterDelta}
	s.start()
	s.config.States = &statesConfig{Ask: []string{"known"}, Set: map[string]int{"known": 11}}
	if !s.upgrade() {
		t.Fatal("upgrade failed")
	}
	if size, from := s.found(2, "known"); size != 10 || from != 1 {
		t.Errorf("%d bytes of generation %d", size, from)
	}
	s.eventually("the memory of the others is given back", func() bool { return len(memories(t, s.pidfile())) == 0 })
	s.config.States = &statesConfig{Ask: []string{"known", "unknown", "counter"}}
	if !s.upgrade() {
		t.Fatal("upgrade failed")
	}
	for name, want := range map[string]int{"known": 11, "unknown": -1, "counter": -1} {
		if size, _ := s.found(3, name); size != want {
			t.Errorf("%q has %d bytes, want %d", name, size, want)
		}
	}
}

// memories returns the sizes of the files in memory that a process has open, by
// their inode.
func memories(t *testing.T, pid int) map[uint64]int64 {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[uint64]int64{}
	for _, e := range entries {
		path := dir + "/" + e.Name()
		to, err := os.Readlink(path)
		if err != nil || !strings.HasPrefix(to, "/memfd:") {
			continue
		}
		if ino, size, err := allocated(path); err == nil {
			all[ino] = size
		}
	}
	return all
}

// TestStateIsAsFreshAsItIsHandedOn: what changes after the attempt has begun
// is lost without a delta, and with one it is there before the first answer.
func TestStateIsAsFreshAsItIsHandedOn(t *testing.T) {
	t.Parallel()
	for how, want := range map[string]int{counterBase: 5, counterDelta: 6} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.config.States = &statesConfig{Counter: how}
			s.start()
			generation := 1
			for n := 1; n <= 3*want; n++ {
				if _, got := s.ask("count"); got != n {
					t.Fatalf("generation %d counts %d, want %d", generation, got, n)
				}
				if n%want != want-1 {
					continue
				}
				// One more, when the state was written already.
				s.config.Faults = []fault{{generation, "hello", "count"}}
				if !s.upgrade() {
					t.Fatal("upgrade failed")
				}
				generation++
				if how == counterDelta {
					n++
				}
			}
		})
	}
}

// TestNoAnswerBeforeTheDelta: under load, whatever process answers.
func TestNoAnswerBeforeTheDelta(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.States = &statesConfig{Counter: counterDelta}
	s.start()
	p := s.probe()
	for generation := 1; generation <= 5; generation++ {
		s.config.Faults = []fault{{generation, "hello", "count"}, {generation + 1, "open", "count"}}
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
		// The gates open with one more than was handed over; so the latter came first.
		if _, n := s.ask("count"); n != 3*generation {
			t.Fatalf("generation %d counts %d, want %d", generation+1, n, 3*generation)
		}
	}
	p.check(t, 0)
}

// TestFaultsOfStates: whatever fails in a callback of either process, the old one
// serves on, says which state it was, and the next upgrade works.
func TestFaultsOfStates(t *testing.T) {
	t.Parallel()
	tests := []struct {
		fault fault
		want  string
	}{
		{fault{1, "size", "error"}, `state "counter": its StateSize is -1`},
		{fault{1, "size", "panic"}, `state "counter": it panicked: a fault was planted in size`},
		{fault{1, "write", "error"}, `state "counter": a fault was planted in write`},
		{fault{1, "write", "panic"}, `state "counter": it panicked: a fault was planted in write`},
		{fault{1, "write", "less"}, `state "counter": it wrote 7 bytes, its StateSize was 8`},
		{fault{1, "write", "more"}, `state "counter": it writes more than the 8 bytes of its StateSize`},
		{fault{1, "delta", "error"}, `state "counter": its difference: a fault was planted in delta`},
		{fault{1, "delta", "panic"}, `state "counter": its difference: it panicked: a fault was planted in delta`},
		{fault{2, "apply", "error"}, `state "counter": its difference: a fault was planted in apply`},
		{fault{2, "apply", "panic"}, `state "counter": its difference: it panicked: a fault was planted in apply`},
		{fault{1, "delta", "less"}, `state "counter": its difference: it panicked: runtime error: index out of range`}, // in the new process
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.fault.Point, " ", tt.fault.Action), func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.config.States = &statesConfig{Counter: counterDelta, Fail: []fault{tt.fault}}
			s.start()
			s.ask("count")
			p := s.probe()
			old, from := s.pidfile(), s.mark()
			if s.upgrade() {
				t.Fatal("upgraded")
			}
			text := s.waitAfter(from, "verdict", moved(old, "serving")).str("err")
			if !strings.Contains(text, tt.want) {
				t.Errorf("the log says %q, want %q", text, tt.want)
			}
			s.serves(old, 1)
			s.zombies(old)
			p.check(t, 0)
			s.config.States.Fail = nil
			if !s.upgrade() {
				t.Fatal("the next upgrade failed")
			}
			if _, n := s.ask("count"); n != 2 {
				t.Errorf("the counter is %d, want 2", n)
			}
		})
	}
}

// TestPredecessorThatDiesLeavesItsStates: what was written before the successor
// was started, at whatever moment it dies.
func TestPredecessorThatDiesLeavesItsStates(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"start", "hello", "manifest", "listen", "ready"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.config.States = &statesConfig{Ask: []string{"s"}, Set: map[string]int{"s": 1 << 20}, Counter: counterDelta}
			s.start()
			s.ask("count")
			s.config.Faults = []fault{{2, point, "kill predecessor"}}
			s.configure()
			s.signal(s.pidfile(), syscall.SIGUSR1)
			s.waitFor("takeover", func(r record) bool { return moved(0, "serving")(r) && r.num("generation") == 2 })
			if size, from := s.found(2, "s"); size != 1<<20 || from != 1 {
				t.Errorf("%d bytes of generation %d", size, from)
			}
			if _, n := s.ask("count"); n != 2 {
				t.Errorf("the counter is %d, want 2", n)
			}
			s.config.Faults = nil
			if !s.upgrade() {
				t.Fatal("the next upgrade failed")
			}
		})
	}
}

// TestFiftyUpgradesWithStatesLeakNothing: no descriptor, no memory.
func TestFiftyUpgradesWithStatesLeakNothing(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.Probation = 10
	s.config.States = &statesConfig{
		Ask: []string{"a", "b"}, Set: map[string]int{"a": 1 << 16, "b": 0}, Counter: counterDelta, Sum: true, Large: 1 << 20,
	}
	s.start()
	open := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.pidfile()))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	const upgrades = 50
	before := 0
	for range upgrades {
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
		if before == 0 {
			before = open()
		}
	}
	if _, n := s.ask("count"); n != 1 {
		t.Errorf("the counter is %d, want 1", n)
	}
	s.eventually("no descriptor more", func() bool { return open() <= before })
	if m := memories(t, s.pidfile()); len(m) != 1 {
		t.Errorf("files in memory: %v, want the large state", m)
	}
}

// allocated returns the inode of a file and how much memory it has.
func allocated(path string) (ino uint64, size int64, err error) {
	var st syscall.Stat_t
	err = syscall.Stat(path, &st)
	return st.Ino, st.Blocks * 512, err
}
