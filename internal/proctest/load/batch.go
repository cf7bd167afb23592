package load

import (
	"context"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"
)

// batch carries several HTTP/1 requests at once: all are written before the
// first is answered, or while answers arrive.
type batch struct{ link }

// turn counts a request that the server has said it did not process, by
// Connection: close in the answer to an earlier one (RFC 9112, section 9.3.2),
// as told, and sends it on the next connection: that is no failure.
func (b *batch) turn(ctx context.Context, n, k int) {
	var requests []request
	for i := range k {
		requests = append(requests, b.request(n+i))
	}
	start := time.Now()
	for len(requests) > 0 && ctx.Err() == nil {
		answers, keep, err := b.send(ctx, requests)
		for range answers {
			b.record(ctx, start, 0, nil)
		}
		requests = requests[answers:]
		if err != nil {
			for range requests {
				b.record(ctx, start, 0, err)
			}
			requests = nil
		}
		if !keep || err != nil {
			b.close()
		}
	}
}

// send returns how many of the requests were answered as they must be. The
// others are lost if there is an error.
func (b *batch) send(ctx context.Context, requests []request) (answers int, keep bool, err error) {
	if err := b.dial(ctx); err != nil {
		return 0, false, err
	}
	if err := b.conn.begin(b.load.cfg.Timeout); err != nil {
		return 0, false, err
	}
	w := write(b.conn.Conn, requests, b.kind == Chaos)
	for i, r := range requests {
		keep, err := b.conn.receive(r)
		switch {
		case err != nil:
			w.stop(b.close)
			return i, false, err
		case !keep:
			w.stop(b.close)
			b.count(&b.told, w.begun(requests)-(i+1))
			return i + 1, false, nil
		}
	}
	// All are answered: if the last bytes, which mean nothing, could not be
	// written, then the connection is gone, and that is all.
	return len(requests), <-w.ended == nil, nil
}

// writer writes requests while their answers are read.
type writer struct {
	sent  atomic.Int64 // bytes that were given to the connection
	ended chan error   // has its result
}

func write(conn io.Writer, requests []request, inPieces bool) *writer {
	w := &writer{ended: make(chan error, 1)}
	var text strings.Builder
	for _, r := range requests {
		text.WriteString(r.text)
	}
	go func() { w.ended <- w.write(conn, text.String(), inPieces) }()
	return w
}

func (w *writer) write(conn io.Writer, text string, inPieces bool) error {
	if !inPieces {
		w.sent.Store(int64(len(text)))
		_, err := io.WriteString(conn, text)
		return err
	}
	for piece := range pieces(text) {
		w.sent.Add(int64(len(piece)))
		if _, err := io.WriteString(conn, piece); err != nil {
			return err
		}
		time.Sleep(rand.N(2 * time.Millisecond))
	}
	return nil
}

// stop returns when nothing is written any more.
func (w *writer) stop(closeConn func()) {
	closeConn()
	<-w.ended
}

// begun is how many of the requests were sent, at least in part.
func (w *writer) begun(requests []request) int {
	n, sent := 0, int(w.sent.Load())
	for _, r := range requests {
		if sent <= 0 {
			break
		}
		sent -= len(r.text)
		n++
	}
	return n
}

// mixed is a request of the kinds Pipeline and Chaos.
func (c *client) mixed(n int) request {
	body := payload(c.id, n)
	switch form := rand.IntN(3); {
	case form == 0:
		return request{text: c.get("/"), check: c.load.identity}
	case form == 1 || c.kind == Pipeline:
		r := c.post(body)
		r.text += c.stray()
		return r
	default:
		r := c.chunked("/echo", body, "")
		r.text += c.stray()
		return r
	}
}

// stray is the empty line that old clients send after the body of a POST. A
// server skips it (RFC 9112, section 2.2).
func (c *client) stray() string {
	if c.kind == Chaos && rand.IntN(2) == 0 {
		return "\r\n"
	}
	return ""
}
