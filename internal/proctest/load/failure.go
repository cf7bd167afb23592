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
	Rejected  Failure = "rejected"  // a stream of HTTP/2 that the server will not process: GOAWAY, REFUSED_STREAM
	Other     Failure = "other"     // not HTTP, a TLS alert, no more descriptors in the client…
)

// unsent is a request that Go's own client refused: see Result.Unsent.
const unsent Failure = "unsent"

// Failures lists the kinds in the order of a report.
var Failures = []Failure{Refused, Reset, EOF, Truncated, Timeout, Status, Body, Rejected, Other}

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

// rejectedError is a stream that the server did not process, and says so. A
// client may open it again elsewhere; these count it.
type rejectedError struct{ err error }

func (e *rejectedError) Error() string { return e.err.Error() }
func (e *rejectedError) Unwrap() error { return e.err }

// ownError is a request that the client refused before it wrote a byte of it.
type ownError struct{ err error }

func (e *ownError) Error() string { return e.err.Error() }
func (e *ownError) Unwrap() error { return e.err }

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
		reject *rejectedError
		own    *ownError
		limit  net.Error
	)
	answered := errors.As(err, &at) && at.answered
	switch {
	case errors.As(err, &status):
		return Status
	case errors.As(err, &body):
		return Body
	case errors.As(err, &own):
		return unsent
	case errors.As(err, &reject):
		return Rejected
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
