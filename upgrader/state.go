package upgrader

import "fmt"

// state is where this process stands.
//
//	            Ready, no predecessor
//	starting ─────────────────────────────────────▶ serving ◀─────────────────┐
//	   │  Ready, predecessor alive                  ▲ ▲  │  ▲                 │
//	   ▼                       predecessor is gone  │ │  │  │ successor       │ successor died,
//	waiting ────────────────────────────────────────┘ │  │  │ failed          │ or rolled back
//	   │ commit        confirm, or predecessor is gone│  ▼  │                 │
//	   ├────────▶ on probation ───────────────────────┘ upgrading ─serving─▶ probation
//	   │ abort           │ rolled back                                        │ time is up
//	   ▼                 ▼                                                    ▼
//	stopped ◀── Stop, from every state but draining                       draining
//
// draining and stopped are final: Done is closed on entry. One arrow is left
// out: from serving to stopped, if a predecessor that was silent for too long
// has taken the service back when it woke up.
type state uint8

const (
	starting state = iota
	waiting
	onProbation
	serving
	upgrading
	probation
	draining
	stopped
	numStates
)

func (s state) String() string {
	return [...]string{
		"starting", "waiting", "on probation", "serving", "upgrading", "probation", "draining", "stopped",
	}[s]
}

func (s state) final() bool { return s == draining || s == stopped }

// committed reports that this process is the server: the pidfile names it and
// the paths of its unix sockets are its own. At any moment at most one process
// is committed.
func (s state) committed() bool { return s == serving || s == upgrading || s == onProbation }

type event uint8

const (
	readyAlone event = iota
	readyWithPredecessor
	committedByPredecessor
	confirmed
	predecessorGone
	predecessorSilent
	aborted
	rolledBack
	upgradeAsked
	successorFailed
	successorServing
	successorDied
	rollbackAsked
	timeUp
	stopAsked
	numEvents
)

func (e event) String() string {
	return [...]string{
		"ready alone", "ready", "committed", "confirmed", "predecessor gone", "predecessor silent", "aborted",
		"rolled back", "upgrade asked", "successor failed", "successor serving", "successor died", "rollback asked",
		"probation over", "stop asked",
	}[e]
}

// moves lists every legal move. A pair that is absent does not happen.
var moves = map[state]map[event]state{
	starting: {readyAlone: serving, readyWithPredecessor: waiting, aborted: stopped, stopAsked: stopped},
	waiting: {
		committedByPredecessor: onProbation, predecessorGone: serving,
		predecessorSilent: stopped, aborted: stopped, stopAsked: stopped,
	},
	onProbation: {
		confirmed: serving, predecessorGone: serving, predecessorSilent: serving,
		rolledBack: stopped, stopAsked: stopped,
	},
	serving:   {upgradeAsked: upgrading, rolledBack: stopped, stopAsked: stopped},
	upgrading: {successorFailed: serving, successorServing: probation, stopAsked: stopped},
	probation: {successorDied: serving, rollbackAsked: serving, timeUp: draining, stopAsked: stopped},
}

func (s state) next(e event) (state, error) {
	to, ok := moves[s][e]
	if !ok {
		return s, fmt.Errorf("upgrader: %s while %s", e, s)
	}
	return to, nil
}

// refusal is what Upgrade answers in s, nil if an attempt may start.
func (s state) refusal() error {
	switch s {
	case serving:
		return nil
	case starting, waiting:
		return ErrNotReady
	case onProbation, upgrading, probation:
		return ErrBusy
	case draining:
		return ErrUpgraded
	default:
		return ErrStopped
	}
}
