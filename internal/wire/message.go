// Package wire holds the messages of the handover channel, one connected unix
// stream socket between predecessor and successor.
//
// A frame is a length of four bytes, big-endian, and that many bytes of JSON:
//
//	{"type":"hello","body":{"version":1,"pid":4711,"build":"v1.2.3"}}
//
// Old and new builds of a program differ, so the messages of a released
// Version never change their meaning. They may grow: a field that the receiver
// does not know is ignored, and one that the sender does not know is zero.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"
)

// Version is the version of the protocol, which hello and manifest carry.
const Version = 1

// MaxFrame is the most bytes of JSON in one frame. The manifest is the only
// message that grows with the application; 2,000 sockets with names of 255
// bytes fit.
const MaxFrame = 1 << 20

// maxText is the most bytes of a text for people. A panic's text can be longer
// than a frame, and its beginning must arrive all the same.
const maxText = 64 << 10

// A Message is one of the types of this package, as a value.
type Message interface{ kind() string }

// Hello is the first message of a successor. On a connection to the control
// socket it asks for the sockets: its sender was not started by the predecessor.
type Hello struct {
	Version int    `json:"version"`
	PID     int    `json:"pid"` // as the sender sees itself
	Build   string `json:"build"`
	Standby bool   `json:"standby,omitempty"` // it waits for its commit for as long as it takes
	Managed bool   `json:"managed,omitempty"` // it has a service manager of its own
	Again   bool   `json:"again,omitempty"`   // a standby that has everything, from a process that has been replaced
}

// Manifest answers Hello: what the successor is going to be, and its sockets.
type Manifest struct {
	Version      int           `json:"version"`
	Generation   int           `json:"generation"`        // the successor's, once it is committed
	PIDFile      string        `json:"pidfile,omitempty"` // absolute path that the predecessor keeps; empty: none
	Probation    time.Duration `json:"probation_ns"`      // how long the predecessor can take the service back
	DrainTimeout time.Duration `json:"drain_timeout_ns"`  // how long the predecessor drains
	Sockets      []Socket      `json:"sockets,omitempty"` // in the order of their descriptors
	Build        string        `json:"build,omitempty"`   // the predecessor's
	Counters     Counters      `json:"counters,omitzero"` // of all generations until now
	PID          int           `json:"pid,omitempty"`     // the predecessor's, as it sees itself
}

// Counters tell how attempts to upgrade the service have ended.
type Counters struct {
	Upgrades  int `json:"upgrades"`
	Failures  int `json:"failures"`  // before the successor served
	Rollbacks int `json:"rollbacks"` // after it had
	Killed    int `json:"killed"`    // generations that were ended before they had drained
}

// Socket describes one socket of a Manifest.
type Socket struct {
	Name      string `json:"name,omitempty"`
	Kind      string `json:"kind,omitempty"`      // listener, packet, file, process, pidfile or turn
	Network   string `json:"network,omitempty"`   // as in package net
	Requested string `json:"requested,omitempty"` // the address as asked for, "localhost:0"
	Address   string `json:"address,omitempty"`   // the address as bound, "127.0.0.1:40123"
	Dev       uint64 `json:"dev,omitempty"`       // with Ino: the inode of the unix path that it bound
	Ino       uint64 `json:"ino,omitempty"`       // 0: none
	State     *State `json:"state,omitempty"`     // a file with these bytes; nil: it is no state
}

// State describes the bytes that a process hands on under a name.
type State struct {
	Name  string `json:"name"`
	Size  int64  `json:"size"`
	Sum   uint32 `json:"crc32c,omitempty"` // Castagnoli's; 0: there is nothing to compare
	Delta bool   `json:"delta,omitempty"`  // until commit its sender can tell what has changed since
}

// Progress tells the predecessor that the successor is still getting ready.
type Progress struct {
	Text string `json:"text"`
}

// Ready tells the predecessor that the successor could serve. With Deltas it
// does once it has applied a Delta, and then it says Ready again.
type Ready struct {
	Deltas bool `json:"deltas,omitempty"`
}

// Delta tells the successor what has changed in the states since the manifest.
// The bytes of all are in one file, in this order, whose descriptor rides along.
type Delta struct {
	States []State `json:"states"`
}

// Failed carries the reason why the successor gives up.
type Failed struct {
	Text string `json:"text"`
}

// Commit tells the successor that it is the server now.
type Commit struct{}

// Abort tells the successor to exit.
type Abort struct {
	Reason string `json:"reason"`
}

// Serving answers Commit: the successor's gate is open. It answers Confirm too: the
// successor has settled.
type Serving struct{}

// Confirm ends the probation: there is no way back. Sent by a successor it asks
// for that.
type Confirm struct {
	Elapsed time.Duration `json:"elapsed_ns,omitempty"` // since the upgrade began
}

// Stopping says that its sender was told to stop, so that the closing of the
// channel, which follows, is not taken for a crash. Either side sends it.
type Stopping struct{}

// Hurry tells a draining process to finish now, if its generation is not above
// Generation.
type Hurry struct {
	Generation int `json:"generation"`
}

// Draining tells the successor who still drains: its sender, and who has told
// that so.
type Draining struct {
	Processes []Process `json:"processes"` // the newest first
}

// Process is one generation of the service.
type Process struct {
	Generation  int       `json:"generation"`
	PID         int       `json:"pid"`
	Build       string    `json:"build,omitempty"`
	State       string    `json:"state"`
	Since       time.Time `json:"since"`
	Connections *int      `json:"connections,omitempty"` // absent: the program does not say
	Deadline    time.Time `json:"deadline,omitzero"`     // when it is told to hurry
}

// Descriptors carries the next descriptors of a Manifest to a process that has
// asked for them, as many as Count says, MaxRights at most.
type Descriptors struct {
	Count int `json:"count"`
}

// Received answers Descriptors, so that no more of them are under way than one
// message has.
type Received struct {
	Count int `json:"count"` // until now
}

// Locks carries to a standby, which is committed next, what only the committed
// process holds: the next pidfile, and the lock for which standbys wait. The
// manifest that it has may be days old.
type Locks struct {
	PIDFile    bool     `json:"pidfile,omitempty"` // the first descriptor
	Turn       bool     `json:"turn,omitempty"`    // the next one
	Generation int      `json:"generation"`        // the standby's, once it is committed
	Counters   Counters `json:"counters,omitzero"`
}

// Descriptors returns how many come with the message.
func (m Locks) Descriptors() int {
	n := 0
	for _, there := range []bool{m.PIDFile, m.Turn} {
		if there {
			n++
		}
	}
	return n
}

// Moved tells a standby that it must come again, to whoever answers the control
// socket now: its sender has been replaced, or has other sockets.
type Moved struct{}

// Connection hands one established connection over, whose descriptor rides
// along.
type Connection struct {
	ID       uint64 `json:"id"`
	Listener string `json:"listener"` // the name of the listener that is to return it
}

// Taken answers Connection: the sender may let go.
type Taken struct {
	ID uint64 `json:"id"`
}

// Refused answers Connection: the sender keeps it.
type Refused struct {
	ID     uint64 `json:"id"`
	Reason string `json:"reason"`
}

func (Hello) kind() string       { return "hello" }
func (Manifest) kind() string    { return "manifest" }
func (Progress) kind() string    { return "progress" }
func (Ready) kind() string       { return "ready" }
func (Delta) kind() string       { return "delta" }
func (Failed) kind() string      { return "failed" }
func (Commit) kind() string      { return "commit" }
func (Abort) kind() string       { return "abort" }
func (Serving) kind() string     { return "serving" }
func (Confirm) kind() string     { return "confirm" }
func (Stopping) kind() string    { return "stopping" }
func (Hurry) kind() string       { return "hurry" }
func (Draining) kind() string    { return "draining" }
func (Descriptors) kind() string { return "descriptors" }
func (Received) kind() string    { return "received" }
func (Locks) kind() string       { return "locks" }
func (Moved) kind() string       { return "moved" }
func (Connection) kind() string  { return "connection" }
func (Taken) kind() string       { return "taken" }
func (Refused) kind() string     { return "refused" }

// An UnknownTypeError reports a message that this build does not know. The
// frame has been read whole, so the next Receive is sound.
type UnknownTypeError struct{ Type string }

func (e *UnknownTypeError) Error() string {
	return fmt.Sprintf("unknown message type %.64q: this build speaks version %d of the protocol", e.Type, Version)
}

// envelope is the JSON of one frame. A message without fields has no body.
type envelope struct {
	Type string          `json:"type"`
	Body json.RawMessage `json:"body,omitempty"`
}

// frame returns the bytes that carry m.
func frame(m Message) ([]byte, error) {
	text, err := encode(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.kind(), err)
	}
	if len(text) > MaxFrame {
		return nil, fmt.Errorf("%s message of %d bytes: at most %d fit a frame", m.kind(), len(text), MaxFrame)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...), nil
}

func encode(m Message) ([]byte, error) {
	body, err := json.Marshal(shorten(m))
	if err != nil {
		return nil, err
	}
	if string(body) == "{}" {
		body = nil
	}
	return json.Marshal(envelope{m.kind(), body})
}

// shorten cuts m's text to what surely fits a frame: JSON makes at most six
// bytes of one.
func shorten(m Message) Message {
	switch m := m.(type) {
	case Progress:
		return Progress{cut(m.Text)}
	case Failed:
		return Failed{cut(m.Text)}
	case Abort:
		return Abort{cut(m.Reason)}
	case Refused:
		return Refused{m.ID, cut(m.Reason)}
	case Answer:
		m.Text = cut(m.Text)
		return m
	default:
		return m
	}
}

// cut returns the first maxText bytes of s, less what would split a rune.
func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	end := maxText
	for end > maxText-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

// decode reads the JSON of one frame.
func decode(text []byte) (Message, error) {
	var e envelope
	if err := json.Unmarshal(text, &e); err != nil {
		return nil, fmt.Errorf(`message %.64q: expected {"type":…,"body":{…}}: %w`, text, err)
	}
	return e.message()
}

func (e envelope) message() (Message, error) {
	switch e.Type {
	case Hello{}.kind():
		return body[Hello](e.Body)
	case Manifest{}.kind():
		return body[Manifest](e.Body)
	case Progress{}.kind():
		return body[Progress](e.Body)
	case Ready{}.kind():
		return body[Ready](e.Body)
	case Delta{}.kind():
		return body[Delta](e.Body)
	case Failed{}.kind():
		return body[Failed](e.Body)
	case Commit{}.kind():
		return body[Commit](e.Body)
	case Abort{}.kind():
		return body[Abort](e.Body)
	case Serving{}.kind():
		return body[Serving](e.Body)
	case Confirm{}.kind():
		return body[Confirm](e.Body)
	case Stopping{}.kind():
		return body[Stopping](e.Body)
	case Hurry{}.kind():
		return body[Hurry](e.Body)
	case Draining{}.kind():
		return body[Draining](e.Body)
	case Request{}.kind():
		return body[Request](e.Body)
	case Notice{}.kind():
		return body[Notice](e.Body)
	case Answer{}.kind():
		return body[Answer](e.Body)
	case Descriptors{}.kind():
		return body[Descriptors](e.Body)
	case Received{}.kind():
		return body[Received](e.Body)
	case Locks{}.kind():
		return body[Locks](e.Body)
	case Moved{}.kind():
		return body[Moved](e.Body)
	case Connection{}.kind():
		return body[Connection](e.Body)
	case Taken{}.kind():
		return body[Taken](e.Body)
	case Refused{}.kind():
		return body[Refused](e.Body)
	default:
		return nil, &UnknownTypeError{e.Type}
	}
}

// body reads a message of type M. No text at all is a message of zeros, so
// that a message which has no fields today can be given some.
func body[M Message](text json.RawMessage) (Message, error) {
	var m M
	if len(text) == 0 {
		return m, nil
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("%s message: %w", m.kind(), err)
	}
	return m, nil
}
