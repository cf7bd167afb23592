//go:build unix

package proctest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest/load"
)

// LoadgenPackage is the import path of the command that Clients run.
const LoadgenPackage = "github.com/go-handover/handover/internal/proctest/loadgen"

// Clients put load on a server from a process of their own, in a place that
// need not be the server's. Its methods are for the test's own goroutine.
type Clients struct {
	t        testing.TB
	cmd      *exec.Cmd
	commands io.WriteCloser
	report   bytes.Buffer
	said     strings.Builder // on standard error; read after silent
	busy     chan struct{}   // closed at the first line of progress
	silent   chan struct{}   // closed at the end of it

	mu       sync.Mutex
	answered map[int]bool  // generations
	more     chan struct{} // closed and replaced when there is one more
}

// StartClients starts the loadgen at path in a place, with these flags. It ends
// with the test at the latest.
func StartClients(t testing.TB, place Place, path string, args ...string) *Clients {
	t.Helper()
	c := &Clients{
		t: t, busy: make(chan struct{}), silent: make(chan struct{}),
		answered: make(map[int]bool), more: make(chan struct{}),
	}
	// The end of the test kills it, if Report was not reached.
	c.cmd = exec.CommandContext(t.Context(), path, append([]string{"-commands", "-json"}, args...)...)
	c.cmd.Stdout = &c.report
	commands, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := c.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := startIn(place, c.cmd); err != nil {
		t.Fatal(err)
	}
	c.commands = commands
	go c.listen(said)
	t.Cleanup(func() {
		<-c.silent
		_ = c.cmd.Wait() // again, after Report
	})
	return c
}

// listen ends when loadgen does.
func (c *Clients) listen(said io.Reader) {
	defer close(c.silent)
	lines := bufio.NewScanner(said)
	once := sync.OnceFunc(func() { close(c.busy) })
	for lines.Scan() {
		if strings.Contains(lines.Text(), " requests ") {
			once()
		}
		var generation int
		if n, _ := fmt.Sscanf(lines.Text(), "generation %d answers", &generation); n == 1 {
			c.note(generation)
		}
		c.said.WriteString(lines.Text() + "\n")
	}
}

func (c *Clients) note(generation int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered[generation] = true
	close(c.more)
	c.more = make(chan struct{})
}

// hasAnswered reports it, and what is closed when there is another generation.
func (c *Clients) hasAnswered(generation int) (bool, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answered[generation], c.more
}

// AnsweredBy waits until a process of this generation has answered one of the
// clients. Those of some kinds never ask who it is: see package load.
func (c *Clients) AnsweredBy(generation int) {
	c.t.Helper()
	limit := time.After(patience)
	for {
		has, more := c.hasAnswered(generation)
		if has {
			return
		}
		select {
		case <-more:
		case <-c.silent:
			c.t.Fatalf("the clients have ended: %s", &c.said)
		case <-limit:
			c.t.Fatalf("in %v generation %d has answered none of the clients", patience, generation)
		}
	}
}

// Busy waits until the clients have been at work for a while: until the first
// line of progress.
func (c *Clients) Busy() {
	c.t.Helper()
	select {
	case <-c.busy:
	case <-c.silent:
		c.t.Fatalf("the clients have ended: %s", &c.said)
	case <-time.After(patience):
		c.t.Fatalf("no progress of the clients in %v", patience)
	}
}

// Mark says that something happens to the server now.
func (c *Clients) Mark() {
	c.t.Helper()
	if _, err := io.WriteString(c.commands, "mark\n"); err != nil {
		c.t.Fatalf("the clients take no commands: %v", err)
	}
}

// Finish says that no more requests are to start.
func (c *Clients) Finish() {
	c.t.Helper()
	if err := c.commands.Close(); err != nil {
		c.t.Fatal(err)
	}
}

// Report waits for the requests in flight, after Finish, and returns what
// became of all.
func (c *Clients) Report() load.Report {
	c.t.Helper()
	<-c.silent // Wait would close the pipe
	err := c.cmd.Wait()
	// With exit code 1 something was lost, which the report says.
	if c.cmd.ProcessState.ExitCode() > 1 || err != nil && !errors.As(err, new(*exec.ExitError)) {
		c.t.Fatalf("the clients failed: %v\n%s", err, &c.said)
	}
	var r load.Report
	if err := json.Unmarshal(c.report.Bytes(), &r); err != nil {
		c.t.Fatalf("the report of the clients: %v\n%s%s", err, &c.report, &c.said)
	}
	return r
}
