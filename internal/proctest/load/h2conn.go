package load

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// h2conn is one connection of HTTP/2, strict about what the server promises:
// a stream that it opens must be answered, and after a GOAWAY it opens none.
// Its client opens so few streams that it does not ask how many it may.
type h2conn struct {
	net.Conn
	unwatch func() bool
	ended   chan struct{} // closed when nothing is read any more
	keep    int           // how much of a body is kept; zero: all. Set before the first stream

	// The write side. It is held across writes, which have a deadline: the ids
	// of streams must go out in their order.
	writing sync.Mutex

	mu       sync.Mutex
	changed  *sync.Cond // a window, or a stream has ended
	streams  map[uint32]*h2stream
	next     uint32
	leaving  bool // GOAWAY was received, or the connection is gone
	left     bool // it was closed without GOAWAY, and without a stream
	greeted  bool // the server's SETTINGS were received
	window   int64
	initial  int64 // the window of a new stream
	maxFrame int
}

// h2stream is one request and its response. The connection's lock guards it
// until it has ended; then it belongs to who has opened it.
type h2stream struct {
	id       uint32
	window   int64
	answered bool
	status   int
	block    []byte // the header that has the status
	body     bytes.Buffer
	keep     int // how much of it is kept; zero: all
	err      error
	done     chan struct{}
}

func newH2Conn(nc net.Conn, unwatch func() bool, limit time.Duration) *h2conn {
	c := &h2conn{
		Conn: nc, unwatch: unwatch, ended: make(chan struct{}), streams: make(map[uint32]*h2stream), next: 1,
		window: defaultWindow, initial: defaultWindow, maxFrame: defaultMaxFrame,
	}
	c.changed = sync.NewCond(&c.mu)
	c.write(limit, settingsFrame(settingHeaderTableSize, 0, settingEnablePush, 0).appendTo([]byte(preface)))
	go c.read() // and answer, after the preface
	return c
}

// write sends frames. Whoever reads learns of an error too, or the stream's
// limit is reached.
func (c *h2conn) write(limit time.Duration, frames []byte) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.writeLocked(limit, frames)
}

func (c *h2conn) writeLocked(limit time.Duration, frames []byte) {
	if c.SetWriteDeadline(time.Now().Add(limit)) == nil {
		_, _ = c.Write(frames) // see write
	}
}

// open sends the header of a request. It returns nil, and has sent nothing, if
// no stream may be opened any more.
func (c *h2conn) open(limit time.Duration, header []byte, last bool) *h2stream {
	c.writing.Lock()
	defer c.writing.Unlock()
	s := c.add()
	if s == nil {
		return nil
	}
	f := frame{kind: frameHeaders, flags: flagEndHeaders, stream: s.id, payload: header}
	if last {
		f.flags |= flagEndStream
	}
	c.writeLocked(limit, f.appendTo(nil))
	return s
}

func (c *h2conn) add() *h2stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leaving {
		return nil
	}
	s := &h2stream{id: c.next, window: c.initial, keep: c.keep, done: make(chan struct{})}
	c.streams[s.id] = s
	c.next += 2
	return s
}

// send sends the body of a request, as far as the server lets it.
func (c *h2conn) send(limit time.Duration, s *h2stream, body string) {
	for body != "" {
		n := c.reserve(s, len(body))
		if n == 0 {
			return
		}
		f := frame{kind: frameData, stream: s.id, payload: []byte(body[:n])}
		if body = body[n:]; body == "" {
			f.flags = flagEndStream
		}
		c.write(limit, f.appendTo(nil))
	}
}

// reserve waits until some of n bytes may be sent, and returns how many; zero
// if the stream has ended.
func (c *h2conn) reserve(s *h2stream, n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.streams[s.id] == s && min(s.window, c.window) <= 0 {
		c.changed.Wait()
	}
	if c.streams[s.id] != s {
		return 0
	}
	n = int(min(int64(n), s.window, c.window, int64(c.maxFrame)))
	s.window -= int64(n)
	c.window -= int64(n)
	return n
}

// expire ends a stream that has taken too long.
func (c *h2conn) expire(limit time.Duration, s *h2stream) {
	if c.end(s, os.ErrDeadlineExceeded) {
		c.write(limit, numberFrame(frameReset, s.id, errorCancel).appendTo(nil))
	}
}

// end ends a stream, and reports false if it has ended already. The last one
// that ends after a GOAWAY takes the connection with it.
func (c *h2conn) end(s *h2stream, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.endLocked(s, err)
}

func (c *h2conn) endLocked(s *h2stream, err error) bool {
	if c.streams[s.id] != s {
		return false
	}
	delete(c.streams, s.id)
	if err != nil {
		s.err = &phaseError{phase: fmt.Sprintf("stream %d", s.id), answered: s.answered, err: err}
	}
	close(s.done)
	c.changed.Broadcast()
	if c.leaving && len(c.streams) == 0 {
		_ = c.Close() // nothing is expected of it
	}
	return true
}

// usable reports that a stream may be opened.
func (c *h2conn) usable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.leaving
}

// wasLeft reports that the server has closed the connection while it was idle.
func (c *h2conn) wasLeft() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left
}

// close gives the connection up, and returns when nothing is read any more.
func (c *h2conn) close() {
	_ = c.Close()
	<-c.ended
}

// read ends with the connection.
func (c *h2conn) read() {
	defer close(c.ended)
	defer c.unwatch()
	in := bufio.NewReader(c.Conn)
	for {
		f, err := readFrame(in)
		if err == nil {
			err = c.handle(in, f)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// fail ends all streams.
func (c *h2conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = !c.leaving && len(c.streams) == 0
	c.leaving = true
	for _, s := range c.streams {
		c.endLocked(s, err)
	}
	_ = c.Close()
}
