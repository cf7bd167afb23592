package wire

import "encoding/json"

// The messages of the control socket. A client sends one Request; the server
// sends Notices, if the request is one that takes time, and ends with an Answer.

// Request asks a server for something.
type Request struct {
	Version int    `json:"version"`
	Verb    string `json:"verb"` // one of the verbs below
}

// The verbs of a Request.
const (
	VerbStatus   = "status"   // what there is now
	VerbWatch    = "watch"    // the same again and again, as notices, until the client closes
	VerbUpgrade  = "upgrade"  // replace the process, and wait for the verdict
	VerbRollback = "rollback" // end probation: back to the predecessor
	VerbConfirm  = "confirm"  // end probation: there is no way back
	VerbStop     = "stop"     // stop the service politely
	VerbPromote  = "promote"  // make the first standby the server, and wait for the verdict
	VerbSwap     = "swap"     // the same, and stand by for it afterwards
)

// Notice is something that happens while a request is carried out: an event of
// package upgrader, or, to who watches, a status.
type Notice struct {
	Event  json.RawMessage `json:"event,omitempty"`
	Status json.RawMessage `json:"status,omitempty"`
}

// Answer is the last message.
type Answer struct {
	Result string          `json:"result"`           // one of the results below
	Text   string          `json:"text,omitempty"`   // for people: why
	Status json.RawMessage `json:"status,omitempty"` // afterwards
}

// The results of an Answer.
const (
	ResultDone       = "done"
	ResultFailed     = "failed"      // the process that was asked serves on
	ResultBusy       = "busy"        // an upgrade is under way, or nothing is that could be ended
	ResultRolledBack = "rolled back" // the process that was asked serves again
	ResultGone       = "gone"        // the service stops, or the process has been replaced
	ResultRefused    = "refused"     // the request is not one, or not this client's to make
)

func (Request) kind() string { return "request" }
func (Notice) kind() string  { return "notice" }
func (Answer) kind() string  { return "answer" }
