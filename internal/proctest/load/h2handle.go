package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// replyLimit bounds the writing of what a server must be told at once.
const replyLimit = 10 * time.Second

// handle does what a frame of the server says. An error is one of the
// connection: the server does not keep to the RFC.
func (c *h2conn) handle(in io.Reader, f frame) error {
	if !c.greeted && f.kind != frameSettings {
		return fmt.Errorf("%w: type %d before SETTINGS", errFrame, f.kind)
	}
	switch f.kind {
	case frameSettings:
		return c.set(f)
	case framePing:
		if !f.has(flagAck) {
			f.flags = flagAck
			c.write(replyLimit, f.appendTo(nil))
		}
		return nil
	case frameWindowUpdate:
		return c.widen(f)
	case frameGoAway:
		return c.goAway(f)
	case frameReset:
		return c.reset(f)
	case frameHeaders:
		return c.headers(in, f)
	case frameData:
		return c.data(f)
	}
	return nil // the RFC says to ignore what is unknown
}

func (c *h2conn) set(f frame) error {
	if f.has(flagAck) {
		return nil
	}
	c.mu.Lock()
	err := f.settings(c.setOne)
	c.greeted = true
	c.changed.Broadcast()
	c.mu.Unlock()
	c.write(replyLimit, frame{kind: frameSettings, flags: flagAck}.appendTo(nil))
	return err
}

func (c *h2conn) setOne(id uint16, value uint32) {
	switch id {
	case settingInitialWindow:
		for _, s := range c.streams {
			s.window += int64(value) - c.initial
		}
		c.initial = int64(value)
	case settingMaxFrame:
		c.maxFrame = int(value)
	}
}

func (c *h2conn) widen(f frame) error {
	n, err := f.number()
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.stream == 0 {
		c.window += int64(n)
	} else if s := c.streams[f.stream]; s != nil {
		s.window += int64(n)
	}
	c.changed.Broadcast()
	return nil
}

// goAway ends the streams that the server will not process. Those up to the
// last one that it names must still be answered.
func (c *h2conn) goAway(f frame) error {
	last, err := f.number()
	if err != nil || len(f.payload) < 8 {
		return errFrame
	}
	code := binary.BigEndian.Uint32(f.payload[4:])
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = true
	for id, s := range c.streams {
		if id > last {
			c.endLocked(s, &rejectedError{fmt.Errorf("GOAWAY (error %d), last stream %d", code, last)})
		}
	}
	if len(c.streams) == 0 {
		_ = c.Close() // nothing is expected of it
	}
	return nil
}

func (c *h2conn) reset(f frame) error {
	code, err := f.number()
	if err != nil {
		return err
	}
	why := fmt.Errorf("RST_STREAM (error %d)", code)
	if code == errorRefusedStream {
		why = &rejectedError{why}
	}
	return c.update(f, func(s *h2stream) error {
		c.endLocked(s, why)
		return nil
	})
}

// update applies a frame to its stream, unless that has ended already.
func (c *h2conn) update(f frame, apply func(*h2stream) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.stream%2 == 0 || f.stream >= c.next {
		return fmt.Errorf("%w: type %d on stream %d, which was not opened", errFrame, f.kind, f.stream)
	}
	s := c.streams[f.stream]
	if s == nil {
		return nil
	}
	err := apply(s)
	if err == nil && f.kind != frameReset && f.has(flagEndStream) {
		c.endLocked(s, nil)
	}
	return err
}

// headers are a response's, or an informational one before it, or trailers.
func (c *h2conn) headers(in io.Reader, f frame) error {
	block, err := f.content()
	for end := f; err == nil && !end.has(flagEndHeaders); {
		end, err = readFrame(in)
		if err == nil && (end.kind != frameContinuation || end.stream != f.stream) {
			err = errFrame
		}
		block = append(block, end.payload...)
	}
	if err != nil {
		return err
	}
	return c.update(f, func(s *h2stream) error {
		s.answered = true
		if s.status < 200 {
			s.status, err = status(block)
			s.block = block
		}
		return err
	})
}

// data gives the server back at once what it has used of the windows.
func (c *h2conn) data(f frame) error {
	content, err := f.content()
	if err != nil {
		return err
	}
	if n := uint32(len(f.payload)); n > 0 {
		both := numberFrame(frameWindowUpdate, 0, n).appendTo(nil)
		both = numberFrame(frameWindowUpdate, f.stream, n).appendTo(both)
		c.write(replyLimit, both)
	}
	return c.update(f, func(s *h2stream) error {
		if s.status < 200 {
			return errors.New("DATA before HEADERS")
		}
		if room := s.keep - s.body.Len(); s.keep > 0 && len(content) > room {
			content = content[:room]
		}
		s.body.Write(content)
		return nil
	})
}
