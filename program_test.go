//go:build linux

package handover

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is the limit of everything that is waited for.
const patience = 60 * time.Second

// rounds is how many upgrades each of the real programs lives through.
func rounds() int {
	if os.Getenv("HANDOVER_SOAK") != "" {
		return 100
	}
	return 20
}

// installed returns the path of a program that is not Go's, and skips the test
// if it is missing. Where scripts/setup.sh has installed everything nothing may
// be missing: HANDOVER_NOSKIP makes it a failure.
func installed(t testing.TB, name, from string) string {
	t.Helper()
	// Servers are in sbin, which is not in everybody's PATH.
	for _, path := range []string{name, "/usr/sbin/" + name, "bin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	missing := fmt.Sprintf("%s is not installed: %s", name, from)
	if os.Getenv("HANDOVER_NOSKIP") != "" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

// program is a client or a proxy that runs beside the server under test. None
// outlives its test.
type program struct {
	t           *testing.T
	cmd         *exec.Cmd
	out, errors transcript // standard output and error
	ended       chan struct{}
}

// start starts a program. Its descriptors from 3 on are files.
func start(t *testing.T, files []*os.File, path string, args ...string) *program {
	t.Helper()
	p := &program{t: t, ended: make(chan struct{})}
	p.cmd = exec.CommandContext(t.Context(), path, args...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.ExtraFiles = &p.out, &p.errors, files
	// Asked politely nginx and Chromium end their own processes first.
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 10 * time.Second
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // ended by a signal, or judged by what it has printed
	}()
	t.Cleanup(func() {
		<-p.ended // t.Context is done
		if t.Failed() {
			t.Logf("%s: %v\n%s\n%s", path, p.cmd.ProcessState, p.out.tail(), p.errors.tail())
		}
	})
	return p
}

// end signals the program, which must not have ended before, and waits for it.
func (p *program) end(sig os.Signal) {
	p.t.Helper()
	select {
	case <-p.ended:
		p.t.Fatalf("%s has ended by itself: %v", p.cmd.Path, p.cmd.ProcessState)
	default:
	}
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatalf("%s: %v", p.cmd.Path, err)
	}
	p.wait()
}

// wait returns when the program has ended.
func (p *program) wait() {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("%s has not ended in %v", p.cmd.Path, patience)
	}
}

// transcript is what a program has printed.
type transcript struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // closed at the next write; nil: nobody waits
}

func (o *transcript) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.more != nil {
		close(o.more)
		o.more = nil
	}
	return o.text.Write(b)
}

// since returns the text, and what is closed when there is more.
func (o *transcript) since() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.more == nil {
		o.more = make(chan struct{})
	}
	return o.text.String(), o.more
}

func (o *transcript) String() string {
	text, _ := o.since()
	return text
}

// tail is enough to see what went wrong.
func (o *transcript) tail() string {
	text := o.String()
	return text[max(0, len(text)-4000):]
}

// says waits until the text is part of what was printed.
func (o *transcript) says(t *testing.T, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		all, more := o.since()
		if strings.Contains(all, text) {
			return
		}
		select {
		case <-more:
		case <-ctx.Done():
			t.Fatalf("not printed in %v: %q", patience, text)
		}
	}
}
