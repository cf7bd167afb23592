package upgrader

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// What a caller branches on.
var (
	// ErrNotSupported is returned by Upgrade where a process cannot hand its
	// sockets to another one: on Windows.
	ErrNotSupported = fmt.Errorf("upgrader: %w on this system", errors.ErrUnsupported)

	// ErrNotReady is returned by Upgrade before Ready has returned nil.
	ErrNotReady = errors.New("upgrader: this process does not serve yet: call Ready first")

	// ErrBusy is returned by Upgrade while another upgrade is under way, and
	// by a successor on probation.
	ErrBusy = errors.New("upgrader: an upgrade is under way")

	// ErrInit is returned by Upgrade in PID 1 of a container or machine, which ends
	// with that process, whoever would take over.
	ErrInit = errors.New("upgrader: PID 1 cannot be replaced, the container ends with it: " +
		"start it with \"upgradectl supervise -- COMMAND\", or call SupervisePID1 at the top of main")

	// ErrNoPredecessor is returned by New with TakeOverRequire if nobody serves at
	// the control socket.
	ErrNoPredecessor = errors.New("nobody to take over from")

	// ErrNoStandby is what asking for a standby gets if none is ready.
	ErrNoStandby = errors.New("upgrader: no standby is ready: start one with upgradectl standby -- COMMAND")

	// ErrUpgraded is the reason of Done after an upgrade, and what a draining
	// process answers to Upgrade, Listen and Ready.
	ErrUpgraded = errors.New("upgrader: replaced by a new process")

	// ErrStopped is the reason of Done after Stop or a stop signal, and what a
	// stopped process answers to Upgrade, Listen and Ready.
	ErrStopped = errors.New("upgrader: stopped")

	// ErrAborted is the reason of Done in a successor that its predecessor gave
	// up, or that gave up a silent predecessor, before it was committed. The
	// predecessor serves on.
	ErrAborted = errors.New("upgrader: not committed, the predecessor serves on")

	// ErrRolledBack is the reason of Done in a successor whose predecessor has
	// taken the service back during probation.
	ErrRolledBack = errors.New("upgrader: rolled back, the predecessor serves again")

	// ErrTimeout is in the chain of a SuccessorError when a limit ran out.
	ErrTimeout = fmt.Errorf("limit reached: %w", os.ErrDeadlineExceeded)

	// ErrName is in the chain of an error about the name of a socket or file:
	// empty, longer than 255 bytes, not UTF-8, or taken.
	ErrName = errors.New("bad name")
)

// Phase is the part of an upgrade in which it ended.
type Phase string

// The phases of an upgrade, in this order.
const (
	PhasePrepare   Phase = "prepare"   // nothing was started
	PhaseStart     Phase = "start"     // the system refused to execute it
	PhaseHello     Phase = "hello"     // started, and said nothing yet
	PhaseReady     Phase = "ready"     // said hello, was not ready
	PhaseCommit    Phase = "commit"    // was ready, did not serve
	PhaseProbation Phase = "probation" // served, and was rolled back
)

// SuccessorError says why an upgrade ended without a successor. Whoever
// receives it still is the server.
type SuccessorError struct {
	Phase Phase
	Path  string           // of the executable
	PID   int              // 0: none was started
	State *os.ProcessState // how it ended; nil: it did not end, or is not our child
	Text  string           // the last words that it sent, "" for none
	Err   error            // the cause
}

func (e *SuccessorError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "upgrader: %s: %s", e.Phase, e.Path)
	if e.PID != 0 {
		fmt.Fprintf(&b, " (pid %d)", e.PID)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	if e.State != nil {
		fmt.Fprintf(&b, " (%v)", e.State)
	}
	if e.Text != "" {
		fmt.Fprintf(&b, "; it said: %s", e.Text)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *SuccessorError) Unwrap() error { return e.Err }
