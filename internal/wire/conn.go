package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// SendTimeout is how long one Send may wait for the peer to read.
const SendTimeout = 5 * time.Second

// MaxRights is the most descriptors of one message: SCM_MAX_FD of Linux.
const MaxRights = 253

// Conn is one end of a handover channel.
type Conn struct {
	c *net.UnixConn

	// sending is held while a frame is written: what it guards is the order of
	// bytes on the stream, and sendTimeout bounds it.
	sending     sync.Mutex
	broken      error // why nothing can be sent any more
	sendTimeout time.Duration

	// What follows belongs to the goroutine in Receive.
	failed  error  // why nothing can be received any more
	limit   uint32 // the most bytes of a frame
	control []byte // room for the control data of one read
}

// NewConn returns the handover channel over c, which it owns from now on. c
// must be a stream socket.
func NewConn(c *net.UnixConn) *Conn {
	return &Conn{c: c, sendTimeout: SendTimeout, limit: MaxFrame, control: make([]byte, controlSpace)}
}

// SetLimit makes Receive refuse frames of more than limit bytes, MaxFrame at
// most: a stranger is not to fill this process's memory. Call it before Receive.
func (c *Conn) SetLimit(limit int) { c.limit = uint32(min(limit, MaxFrame)) }

// Send writes m, with duplicates of the descriptors rights, which remain the
// caller's: as many as m says, which is none but for a Connection, Delta, Descriptors
// and Locks. Either the whole
// frame is written, or the error says why not. It waits for the peer for
// SendTimeout; then, and after part of a frame was written, the Conn is broken
// and every later Send fails. A message that does not fit a frame is refused
// before a byte is written, but a text longer than 64 KiB is cut. Send is safe
// for concurrent use.
func (c *Conn) Send(m Message, rights ...int) error {
	if len(rights) != takes(m) {
		return fmt.Errorf("%s message with %d descriptors: it takes %d", m.kind(), len(rights), takes(m))
	}
	b, err := frame(m)
	if err != nil {
		return err
	}
	oob, err := encodeRights(rights)
	if err != nil {
		return fmt.Errorf("send %s: %w", m.kind(), err)
	}
	if err := c.write(b, oob); err != nil {
		return fmt.Errorf("send %s: %w", m.kind(), err)
	}
	return nil
}

// takes returns how many descriptors ride along with m.
func takes(m Message) int {
	switch m := m.(type) {
	case Connection, Delta:
		return 1
	case Descriptors:
		return m.Count
	case Locks:
		return m.Descriptors()
	}
	return 0
}

// write writes one frame. When it breaks the Conn it does not shut the socket
// down: the peer would take that for our death, and act on it. Our own side
// decides what a peer that does not read deserves.
func (c *Conn) write(frame, oob []byte) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if c.broken != nil {
		return fmt.Errorf("the handover channel is broken: %w", c.broken)
	}
	if err := c.c.SetWriteDeadline(time.Now().Add(c.sendTimeout)); err != nil {
		return err
	}
	n, err := c.writeAll(frame, oob)
	if n > 0 && n < len(frame) || errors.Is(err, os.ErrDeadlineExceeded) {
		c.broken = err
	}
	return err
}

// writeAll sends the descriptors with the first bytes, once: a stream takes as
// much of a write as it has room for.
func (c *Conn) writeAll(frame, oob []byte) (int, error) {
	if len(oob) == 0 {
		return c.c.Write(frame)
	}
	n, _, err := c.c.WriteMsgUnix(frame, oob, nil)
	if err != nil || n == len(frame) {
		return n, err
	}
	rest, err := c.c.Write(frame[n:])
	return n + rest, err
}

// Receive waits for a message and returns it with the descriptors that came
// with it, which are the caller's and close-on-exec; their O_NONBLOCK is as the
// sender left it. What takes descriptors comes with all of them, or with none if
// this process was at its limit and the kernel had to drop some. The others come
// with none.
//
// The error is io.EOF if the peer closed its end between two frames or died
// there, and io.ErrUnexpectedEOF inside one. After a message that cannot be
// understood the next one can still be received. One goroutine at a time may
// call Receive.
func (c *Conn) Receive() (Message, []*os.File, error) {
	if c.failed != nil {
		return nil, nil, c.failed
	}
	var r rights
	text, err := c.readFrame(&r)
	if err != nil {
		c.failed = err
		return nil, nil, r.discard(err)
	}
	m, err := decode(text)
	if err != nil {
		return nil, nil, r.discard(err)
	}
	files, err := r.of(m)
	if err != nil {
		return nil, nil, err
	}
	return m, files, nil
}

// readFrame reads one frame and nothing of the next one. So the descriptors
// that arrive meanwhile are this frame's: they come with its first bytes, and
// the kernel ends a read of a stream where others begin.
func (c *Conn) readFrame(r *rights) ([]byte, error) {
	var header [4]byte
	if err := c.readFull(header[:], r); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(header[:])
	if size == 0 || size > c.limit {
		return nil, fmt.Errorf("frame of %d bytes: expected 1 to %d", size, c.limit)
	}
	text, err := c.readText(int(size), r)
	if err == io.EOF { //nolint:errorlint // readFull returns it bare
		err = io.ErrUnexpectedEOF
	}
	return text, err
}

// readText reads the JSON of a frame. Its memory grows as the bytes arrive,
// because a length is but a claim.
func (c *Conn) readText(size int, r *rights) ([]byte, error) {
	const piece = 16 << 10
	var text []byte
	for len(text) < size {
		start, end := len(text), min(len(text)+piece, size)
		text = slices.Grow(text, end-start)[:end]
		if err := c.readFull(text[start:], r); err != nil {
			return nil, err
		}
	}
	return text, nil
}

// readFull reads len(b) bytes, and the descriptors that come with them into r.
// Like io.ReadFull it returns io.EOF only if there was no byte at all.
func (c *Conn) readFull(b []byte, r *rights) error {
	for done := 0; done < len(b); {
		n, oobn, flags, _, err := c.c.ReadMsgUnix(b[done:], c.control)
		switch {
		case gone(err) && done == 0:
			return io.EOF
		case gone(err):
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
		if err := r.add(c.control[:oobn], flags); err != nil {
			return err
		}
		done += n
	}
	return nil
}

// gone reports whether err means that the peer has closed its end. Linux says
// ECONNRESET if the peer died with messages of ours unread; what the peer had
// sent before comes first even then.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
}

// CloseRead refuses what the peer sends from now on: its Send fails. What it
// has sent already can still be received (on Linux; the BSDs discard it); then
// comes io.EOF.
func (c *Conn) CloseRead() error { return c.c.CloseRead() }

// Close closes the channel. Send and Receive in progress return net.ErrClosed,
// and the peer receives io.EOF.
func (c *Conn) Close() error { return c.c.Close() }

// rights are the descriptors that came with one frame.
type rights struct {
	files []*os.File
	lost  bool // the kernel had to drop some: this process is at its limit
}

func (r *rights) add(control []byte, flags int) error {
	files, lost, err := decodeRights(control, flags)
	r.files = append(r.files, files...)
	r.lost = r.lost || lost
	if err != nil {
		return fmt.Errorf("control data of the handover channel: %w", err)
	}
	return nil
}

// of returns the files if they are as many as m takes, and none if they were
// lost. It closes them otherwise.
func (r *rights) of(m Message) ([]*os.File, error) {
	want := takes(m)
	switch {
	case r.lost && want > 0:
		return nil, r.discard(nil)
	case r.lost || len(r.files) != want:
		return nil, r.discard(fmt.Errorf("%s message with %d descriptors: expected %d", m.kind(), len(r.files), want))
	default:
		return r.files, nil
	}
}

// discard closes the files and returns err, which stays what it is unless
// there is more to say.
func (r *rights) discard(err error) error {
	for _, f := range r.files {
		if closeErr := f.Close(); closeErr != nil {
			err = errors.Join(err, closeErr)
		}
	}
	return err
}
