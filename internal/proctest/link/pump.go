package link

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"io/fs"
	"time"
)

// room is how many packets can be under way in one direction. A sender that
// outruns it waits in the kernel's queue of the device, as before a slow line.
const room = 4096

// packet is on its way until it is due.
type packet struct {
	due  time.Time
	data []byte
}

// pump carries packets, each of which is one Read and one Write, and delivers
// each delay after it was sent, in order. It returns when from has no more.
func pump(from io.Reader, to io.Writer, delay time.Duration) error {
	way := make(chan packet, room)
	delivered := make(chan error, 1)
	go func() { delivered <- deliver(to, way) }()
	err := send(from, way, delay)
	return errors.Join(err, <-delivered)
}

func send(from io.Reader, way chan<- packet, delay time.Duration) error {
	defer close(way)
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return unlessClosed(err)
		}
		way <- packet{time.Now().Add(delay), bytes.Clone(buf[:n])}
	}
}

// deliver empties way even when nothing can be delivered any more, because
// send would wait for ever. It returns the first error.
func deliver(to io.Writer, way <-chan packet) (err error) {
	for p := range way {
		// Until a point in time, not for a while: a late packet does not
		// make the next one late too.
		time.Sleep(time.Until(p.due))
		_, failed := to.Write(p.data)
		err = cmp.Or(err, failed)
	}
	return unlessClosed(err)
}

// unlessClosed drops the error of a device that was closed, which is how a
// pump is told to end.
func unlessClosed(err error) error {
	if errors.Is(err, fs.ErrClosed) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
