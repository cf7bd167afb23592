package proctest

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Event is a line that one of a server's processes has logged. A line that is
// no JSON, of a panic for example, has only its text.
type Event struct {
	Message    string `json:"message"`
	PID        int    `json:"pid"`
	Generation int    `json:"generation"`
	From       string `json:"from"`
	To         string `json:"to"`
	Successor  int    `json:"successor"`
	Err        string `json:"err"`

	Line   string         `json:"-"`
	Fields map[string]any `json:"-"` // all of them

	after int // how many events there are up to this one
}

func parseEvent(line string) Event {
	var e Event
	if json.Unmarshal([]byte(line), &e) != nil || json.Unmarshal([]byte(line), &e.Fields) != nil {
		e = Event{}
	}
	e.Line = line
	return e
}

// Match says which event is waited for; Name is for the failure message.
type Match struct {
	Name string
	Is   func(Event) bool
}

// Reached matches the process of this generation when it gets into this state.
// A generation is there again when an earlier attempt has failed: then wait
// with After.
func Reached(generation int, state string) Match {
	return Match{fmt.Sprintf("generation %d is %s", generation, state), func(e Event) bool {
		return e.Generation == generation && e.To == state
	}}
}

// Changed matches the process with this pid when it gets into one of states.
func Changed(pid int, states ...string) Match {
	return Match{fmt.Sprintf("process %d is %s", pid, strings.Join(states, " or ")), func(e Event) bool {
		for _, s := range states {
			if e.PID == pid && e.To == s {
				return true
			}
		}
		return false
	}}
}

// Logged matches a record with this message, of whichever process.
func Logged(message string) Match {
	return Match{fmt.Sprintf("%q is logged", message), func(e Event) bool { return e.Message == message }}
}

// Text matches a line with this text in it.
func Text(text string) Match {
	return Match{fmt.Sprintf("%q is printed", text), func(e Event) bool { return strings.Contains(e.Line, text) }}
}
