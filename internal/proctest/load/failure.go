package load

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"syscall"
)

// Failure is how a request was lost, as its client saw it.
type Failure string

// The kinds of failure, each counted apart.
const (
	Refused   Failure = "refused"   // nobody listens, or the unix socket's path is gone
	Reset     Failure = "reset"     // the server's kernel threw the connection away
	EOF       Failure = "eof"       // closed before the first byte of the response
	Truncated Failure = "truncated" // closed within the response
	Timeout   Failure = "timeout"   // no complete response within the limit
	Status    Failure = "status"    // not 200
	Body      Failure = "body"      // a complete response with other bytes than it must have
	Other     Failure = "other"     // not HTTP, a TLS alert, no more descriptors in the client…
)

// Failures lists the kinds in the order of a report.
var Failures = []Failure{Refused, Reset, EOF, Truncated, Timeout, Status, Body, Other}

// cut reports that a process that dies can cause f on the connections that it
// has accepted, and on no others.
func (f Failure) cut() bool { return f == Reset || f == EOF || f == Truncated }

// phaseError says in which part of the exchange err came up.
type phaseError struct {
	phase    string // dial, handshake, write, read
	answered bool   // a byte of the response had arrived
	err      error
}

func (e *phaseError) Error() string { return e.phase + ": " + e.err.Error() }
func (e *phaseError) Unwrap() error { return e.err }

// statusError is a response that is complete, and not 200.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("status %d", int(e)) }

// bodyError is a response that is complete, and wrong.
type bodyError string

func (e bodyError) Error() string { return string(e) }

// wrong describes two bodies that differ, without printing either of them whole.
func wrong(got, want string) error {
	at := 0
	for at < len(got) && at < len(want) && got[at] == want[at] {
		at++
	}
	return bodyError(fmt.Sprintf("%d bytes, want %d, differ from byte %d on: %.40q, want %.40q",
		len(got), len(want), at, got[at:], want[at:]))
}

// classify says under which kind err is counted.
func classify(err error) Failure {
	var (
		at     *phaseError
		status statusError
		body   bodyError
		limit  net.Error
	)
	answered := errors.As(err, &at) && at.answered
	switch {
	case errors.As(err, &status):
		return Status
	case errors.As(err, &body):
		return Body
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return Refused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Reset
	case errors.As(err, &limit) && limit.Timeout():
		return Timeout
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return Other
	case answered:
		return Truncated
	}
	return EOF
}
