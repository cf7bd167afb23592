//go:build unix

package upgradertest

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// judge is a test that may fail without the real one failing.
type judge struct {
	testing.TB

	mu       sync.Mutex
	said     []string
	logged   []string
	cleanups []func()
}

func (j *judge) Errorf(format string, a ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.said = append(j.said, fmt.Sprintf(format, a...))
}

func (j *judge) Failed() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.said) > 0
}

func (j *judge) Error(a ...any) { j.Errorf("%s", fmt.Sprint(a...)) }
func (j *judge) Logf(format string, a ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.logged = append(j.logged, fmt.Sprintf(format, a...))
}

func (j *judge) Cleanup(f func()) { j.cleanups = append(j.cleanups, f) }

func (j *judge) Fatal(a ...any) { j.Fatalf("%s", fmt.Sprint(a...)) }

func (j *judge) Fatalf(format string, a ...any) {
	j.Errorf(format, a...)
	runtime.Goexit()
}

func (j *judge) end() {
	for _, f := range slices.Backward(j.cleanups) {
		f()
	}
}

// complaints returns what a test is told that does as f, up to its end.
func complaints(t *testing.T, f func(tb testing.TB)) []string {
	t.Helper()
	return judged(t, f).said
}

func judged(t *testing.T, f func(tb testing.TB)) *judge {
	t.Helper()
	j := &judge{TB: t}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer j.end()
		f(j)
	}()
	<-ended
	return j
}

// wantComplaint fails if what a test is told is not one complaint with all of
// these texts in it.
func wantComplaint(t *testing.T, said []string, texts ...string) {
	t.Helper()
	if len(said) != 1 {
		t.Fatalf("%d complaints, want one with %q:\n%s", len(said), texts, strings.Join(said, "\n"))
	}
	for _, text := range texts {
		if !strings.Contains(said[0], text) {
			t.Errorf("the complaint has no %q: %s", text, said[0])
		}
	}
}
