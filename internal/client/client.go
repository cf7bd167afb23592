// Package client asks a server through its control socket, and sees by its
// pidfile how an upgrade goes.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/wire"
	"github.com/go-handover/handover/upgrader"
)

// ErrNoAnswer is in the chain of an error if the connection was there and has
// ended without an answer: the process that was asked has ended.
var ErrNoAnswer = errors.New("the connection has ended without an answer")

// An Error says why a server has not answered.
type Error struct {
	Path string // of the control socket
	Err  error
	Hint string // what to do about it; empty: not known
}

func (e *Error) Error() string {
	if e.Hint == "" {
		return fmt.Sprintf("control socket %s: %v", e.Path, e.Err)
	}
	return fmt.Sprintf("control socket %s: %v: %s", e.Path, e.Err, e.Hint)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Client asks the server behind one control socket. Each request has a
// connection of its own, and reaches whichever process serves then.
type Client struct{ Path string }

// Answer is what a server has answered.
type Answer struct {
	Result string // one of wire's
	Text   string // why
	Status upgrader.Status
	JSON   json.RawMessage // the Status with all fields, this build knows them or not
}

// Do makes one request and returns the answer. Until then it calls event for
// each event, which may be nil. An error of event ends the request and is
// returned as it is, and so is the cause of ctx; any other is an *Error.
func (c Client) Do(ctx context.Context, verb string, event func(upgrader.Event) error) (Answer, error) {
	return c.ask(ctx, verb, func(n wire.Notice) error {
		if event == nil || n.Event == nil {
			return nil
		}
		var e upgrader.Event
		if err := json.Unmarshal(n.Event, &e); err != nil {
			return c.notUnderstood(err)
		}
		return event(e)
	})
}

// Status asks for what there is now.
func (c Client) Status(ctx context.Context) (Answer, error) {
	return c.ask(ctx, wire.VerbStatus, func(wire.Notice) error { return nil })
}

// Watch calls status whenever something changes, and about once a second. It
// ends as Do does; its answer is that of a process that is replaced or stopped.
func (c Client) Watch(ctx context.Context, status func(upgrader.Status, json.RawMessage) error) (Answer, error) {
	return c.ask(ctx, wire.VerbWatch, func(n wire.Notice) error {
		if n.Status == nil {
			return nil
		}
		var s upgrader.Status
		if err := json.Unmarshal(n.Status, &s); err != nil {
			return c.notUnderstood(err)
		}
		return status(s, n.Status)
	})
}

func (c Client) ask(ctx context.Context, verb string, notice func(wire.Notice) error) (Answer, error) {
	uc, err := c.dial(ctx)
	if err != nil {
		return Answer{}, err
	}
	defer uc.Close()
	// What is waited for is a message; the end of ctx ends the wait.
	stop := context.AfterFunc(ctx, func() { _ = uc.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn := wire.NewConn(uc)
	// A server that refuses this client may have answered and gone already.
	sent := conn.Send(wire.Request{Version: wire.Version, Verb: verb})
	for {
		m, err := receive(conn)
		if err != nil {
			return Answer{}, c.failure(ctx, errors.Join(err, sent))
		}
		switch m := m.(type) {
		case wire.Notice:
			if err := notice(m); err != nil {
				return Answer{}, err
			}
		case wire.Answer:
			return c.answer(m)
		default: // of a later version
		}
	}
}

// receive skips what this build does not know.
func receive(conn *wire.Conn) (wire.Message, error) {
	for {
		m, files, err := conn.Receive()
		for _, f := range files {
			_ = f.Close() // nothing was asked for that has one
		}
		if err == nil || !errors.As(err, new(*wire.UnknownTypeError)) {
			return m, err
		}
	}
}

func (c Client) answer(m wire.Answer) (Answer, error) {
	a := Answer{Result: m.Result, Text: m.Text, JSON: m.Status}
	if m.Status == nil {
		return a, nil
	}
	if err := json.Unmarshal(m.Status, &a.Status); err != nil {
		return Answer{}, c.notUnderstood(err)
	}
	return a, nil
}

const queuePause = 10 * time.Millisecond

// dial waits for room in the socket's queue: Linux does not, for a socket that
// does not block.
func (c Client) dial(ctx context.Context) (*net.UnixConn, error) {
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", c.Path)
		if uc, ok := conn.(*net.UnixConn); ok && err == nil {
			return uc, nil
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return nil, c.unreachable(ctx, err)
		}
		select {
		case <-time.After(queuePause):
		case <-ctx.Done():
			return nil, c.failure(ctx, err)
		}
	}
}

func (c Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) { // a dial may notice first
		return c.failure(ctx, err)
	}
	e := &Error{Path: c.Path, Err: err}
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		e.Err = op.Err // it repeats the path
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Hint = "no server has opened it: is one running, with Options.ControlSocket set to this path?"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Hint = "nobody listens: the server that opened it has ended, or it is not a socket"
	case errors.Is(err, fs.ErrPermission):
		e.Hint = "be the user that the server runs as, or root"
	case errors.Is(err, syscall.EINVAL):
		e.Hint = "the path of a unix socket has about 100 bytes at most"
	}
	return e
}

// failure is the error for a connection that has brought no answer.
func (c Client) failure(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, context.DeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return &Error{c.Path, fmt.Errorf("no answer in time: %w", os.ErrDeadlineExceeded), "is the process stopped or overloaded?"}
	case cause != nil:
		return cause
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &Error{Path: c.Path, Err: ErrNoAnswer}
	}
	return c.notUnderstood(err)
}

func (c Client) notUnderstood(err error) error {
	return &Error{c.Path, fmt.Errorf("what came is not an answer: %w", err), "is it the control socket of a server with upgrader?"}
}
