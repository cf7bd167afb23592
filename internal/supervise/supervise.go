// Package supervise keeps a service whose processes succeed each other under
// the eye of something that watches one pid: it is that pid.
//
// It follows the service by the protocol of sd_notify(3): the main process
// names its successor with MAINPID=, and stores its sockets with FDSTORE=1.
package supervise

import (
	"fmt"
	"io"
	"time"
)

// Restart says after which ends of a main process the command is started again.
type Restart int

// The values of Restart.
const (
	Never     Restart = iota
	OnFailure         // after an exit code that is not 0, or a signal
	Always
	UnlessStopped // always, but for exit code 0 of one that has said STOPPING=1
)

var restartNames = [...]string{"no", "on-failure", "always", "unless-stopped"}

// String returns the word that Set takes.
func (r *Restart) String() string { return restartNames[*r] }

// Set is for a flag.
func (r *Restart) Set(s string) error {
	for i, name := range restartNames {
		if s == name {
			*r = Restart(i)
			return nil
		}
	}
	return fmt.Errorf("want no, on-failure, always or unless-stopped")
}

// after says whether a main process that has ended with code is followed by
// another one. deliberate: it had said that the service stops.
func (r Restart) after(code int, deliberate bool) bool {
	switch r {
	case OnFailure:
		return code != 0
	case UnlessStopped:
		return code != 0 || !deliberate
	case Always:
		return true
	default:
		return false
	}
}

// DefaultName is what supervises, in its log.
const DefaultName = "upgradectl supervise"

// DefaultKillAfter is how long what outlives the last main process may take.
const DefaultKillAfter = 10 * time.Second

// hurry is how long it has, at most, once it was told to end.
const hurry = 10 * time.Second

// Config says what to run, and how.
type Config struct {
	// Command is the program, looked up in PATH, and its arguments.
	Command []string

	// Path is the program's file instead, if it is set.
	Path string

	// Restart is Never unless set. A stop is never followed by a restart.
	Restart Restart

	// Env is added to the environment of the command.
	Env []string

	// NoStore: what the service wants to be stored is not. It has come for its
	// sockets to a process that serves, and would do so again.
	NoStore bool

	// ReadyFD is the descriptor to which a newline is written at the first
	// READY=1, and which is closed then (s6's notification-fd). 0: none.
	ReadyFD int

	// KillAfter is how long the processes that outlive the last main process
	// have to finish. Then they are told to end by SIGTERM, and after as long
	// again, 10 s at most, by SIGKILL. 0: DefaultKillAfter.
	KillAfter time.Duration

	// Direct starts Command without the detour through this binary that sets
	// LISTEN_PID. The command must call AdoptListenPID itself.
	Direct bool

	// Log takes one line for each event. nil: standard error.
	Log io.Writer

	// Name begins each line. Empty: DefaultName.
	Name string
}

// VariablePID names the environment variable with the supervisor's pid.
const VariablePID = "UPGRADER_SUPERVISOR_PID"

// The exit codes of a command that cannot be started, as a shell has them.
const (
	codeCannotRun = 126
	codeNotFound  = 127
)

// codeLost stands for an exit code that nobody has.
const codeLost = 1

// The delays before a restart: doubled each time, from the first to the last.
// A main process that has run for steady begins anew. READY=1 does not: what
// crashes soon after it is a crash loop all the same.
const (
	firstDelay = 100 * time.Millisecond
	lastDelay  = 30 * time.Second
	steady     = 10 * time.Second
)

// backoff counts the delays.
type backoff struct{ next time.Duration }

// after returns the delay after a run that took ran.
func (b *backoff) after(ran time.Duration) time.Duration {
	if ran >= steady || b.next == 0 {
		b.next = firstDelay
	}
	d := b.next
	b.next = min(2*d, lastDelay)
	return d
}
