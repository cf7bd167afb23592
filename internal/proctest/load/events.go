package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
)

// events reads server-sent events, each of which counts as a request. When the
// server ends the stream cleanly it asks for the events that follow: that is
// no failure.
type events struct {
	link
	stream *http.Response // nil: none
	in     *bufio.Reader
	last   int // the id of the latest event
}

// idle is only for a client without a stream: events do not wait.
func (e *events) idle(starting context.Context, d time.Duration) {
	if e.stream == nil {
		e.link.idle(starting, d)
	}
}

func (e *events) turn(ctx context.Context, _, _ int) {
	start := time.Now()
	err := e.next(ctx)
	if err != nil {
		e.drop()
	}
	e.record(ctx, start, streamPace, err)
}

func (e *events) drop() {
	e.stream = nil
	e.close()
}

// next receives an event, on the stream that is there or on a new one, which
// must have at least one.
func (e *events) next(ctx context.Context) error {
	for range 2 {
		if err := e.open(ctx); err != nil {
			return err
		}
		if err := e.conn.SetDeadline(time.Now().Add(e.load.cfg.Timeout)); err != nil {
			return &phaseError{phase: "read", err: err}
		}
		err := e.receive()
		if !errors.Is(err, errEnd) {
			return e.conn.failed(err)
		}
		keep := !e.stream.Close
		e.stream = nil
		if !keep {
			e.close()
		}
	}
	return bodyError("a stream without an event")
}

// open asks for the events after the last one.
func (e *events) open(ctx context.Context) error {
	if e.stream != nil {
		return nil
	}
	if err := e.dial(ctx); err != nil {
		return err
	}
	if err := e.conn.begin(e.load.cfg.Timeout); err != nil {
		return err
	}
	head := e.header("GET", "/events", "Accept: text/event-stream", fmt.Sprintf("Last-Event-ID: %d", e.last))
	if err := e.conn.write(head, 0, 0); err != nil {
		return &phaseError{phase: "write", err: err}
	}
	resp, err := http.ReadResponse(e.conn.responses, nil) //nolint:bodyclose // it is read to its end, or dropped with the connection
	switch {
	case err != nil:
		return e.conn.failed(err)
	case resp.StatusCode != http.StatusOK:
		return e.conn.failed(statusError(resp.StatusCode))
	case !slices.Equal(resp.TransferEncoding, []string{"chunked"}):
		return e.conn.failed(bodyError("not chunked: its end says nothing"))
	}
	e.stream, e.in = resp, bufio.NewReader(resp.Body)
	return nil
}

// errEnd is the clean end of a stream, after a whole event.
var errEnd = errors.New("end of stream")

// receive reads one event, which must be the one after the last.
func (e *events) receive() error {
	want := fmt.Sprintf("id: %d\ndata: event %d\n\n", e.last+1, e.last+1)
	got := make([]byte, len(want))
	n, err := io.ReadFull(e.in, got)
	switch {
	case n == 0 && err == io.EOF:
		return errEnd
	case err != nil && e.conn.broken == nil:
		return bodyError(fmt.Sprintf("the stream ends within an event: %q", got[:n]))
	case err != nil:
		return err
	case string(got) != want:
		return wrong(string(got), want)
	}
	e.last++
	return nil
}
