//go:build linux

package upgrader

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"sync/atomic"
)

// statesConfig is what the program hands on.
type statesConfig struct {
	Ask     []string       `json:"ask,omitempty"` // for these states, and says what it finds
	Set     map[string]int `json:"set,omitempty"` // so many bytes, which follow from the generation
	Counter string         `json:"counter,omitempty"`
	Sum     bool           `json:"sum,omitempty"`
	Large   int64          `json:"large,omitempty"`   // one state of so many bytes, handed on as it is
	Written bool           `json:"written,omitempty"` // the first generation writes it when it is replaced
	Points  bool           `json:"points,omitempty"`  // when each point is reached

	// Fail is what fails in which generation: Point is the callback, size, write,
	// delta or apply; Action is error, panic, less or more.
	Fail []fault `json:"fail,omitempty"`
}

// How the counter is handed on.
const (
	counterBase  = "base"  // as it was when the attempt began
	counterDelta = "delta" // as it was when the successor was ready
)

// counter counts the lines "count" in all generations.
var counter atomic.Int64

// stateProgram is one generation of the program with its states.
type stateProgram struct {
	*statesConfig
	u    *Upgrader
	path string // of the configuration
	log  *slog.Logger
}

func (c *statesConfig) open(u *Upgrader, path string, log *slog.Logger) error {
	p := stateProgram{c, u, path, log}
	for _, name := range c.Ask {
		if err := p.ask(name); err != nil {
			return err
		}
	}
	for name, size := range c.Set {
		if err := u.SetState(name, pattern{u.Generation(), size}); err != nil {
			return err
		}
	}
	return errors.Join(p.count(), p.large())
}

// ask logs what was handed on: how many bytes, and which generation wrote them.
func (p stateProgram) ask(name string) error {
	found := func(size, from int) {
		p.log.Info("state", "pid", os.Getpid(), "generation", p.u.Generation(), "name", name, "size", size, "from", from)
	}
	s, err := p.u.State(name)
	if errors.Is(err, fs.ErrNotExist) {
		found(-1, 0)
		return nil
	}
	if err != nil {
		return err
	}
	defer s.Close()
	from := 0
	for g := range p.u.Generation() {
		if (pattern{g, s.Len()}).sum() == crc32.ChecksumIEEE(s.Bytes()) && s.Len() > 0 {
			from = g
		}
	}
	found(s.Len(), from)
	return nil
}

// pattern is a state that no other generation has.
type pattern struct{ generation, size int }

func (p pattern) WriteTo(w io.Writer) (int64, error) {
	b := make([]byte, p.size)
	for i := range b {
		b[i] = byte(i*(p.generation+1) + i>>8 + p.generation)
	}
	return Bytes(b).WriteTo(w)
}

func (p pattern) sum() uint32 {
	h := crc32.NewIEEE()
	_, _ = p.WriteTo(h)
	return h.Sum32()
}

// count hands the counter on.
func (p stateProgram) count() error {
	if p.Counter == "" {
		return nil
	}
	s, err := p.u.State("counter")
	switch {
	case err == nil:
		counter.Store(int64(binary.BigEndian.Uint64(s.Bytes())))
		err = s.Close()
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if p.Counter == counterBase {
		return errors.Join(err, p.u.SetState("counter", counterState{p}))
	}
	return errors.Join(err, p.u.SetState("counter", changingCounter{counterState{p}}), p.u.OnStateDelta("counter", p.apply))
}

func (p stateProgram) apply(delta []byte) error {
	_, err := p.fails("apply")
	counter.Store(int64(binary.BigEndian.Uint64(delta)))
	return err
}

// fails does what is to fail at this callback, and returns what that leaves.
func (p stateProgram) fails(callback string) (action string, err error) {
	now, err := readConfig(p.path)
	if err != nil {
		return "", err
	}
	for _, f := range now.States.Fail {
		if f.Generation != p.u.Generation() || f.Point != callback {
			continue
		}
		switch f.Action {
		case "error":
			return "", errors.New("a fault was planted in " + callback)
		case "panic":
			panic("a fault was planted in " + callback)
		}
		return f.Action, nil
	}
	return "", nil
}

// counterState is the counter as it is when it is written.
type counterState struct{ p stateProgram }

func (s counterState) StateSize() int64 {
	_, err := s.p.fails("size")
	if err != nil {
		return -1
	}
	return 8
}

func (s counterState) WriteTo(w io.Writer) (int64, error) { return 0, s.write("write", w) }

func (s counterState) write(callback string, w io.Writer) error {
	action, err := s.p.fails(callback)
	if err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(counter.Load()))
	switch action {
	case "less":
		b = b[:7]
	case "more":
		b = append(b, 0)
	}
	_, err = w.Write(b)
	return err
}

type changingCounter struct{ counterState }

func (s changingCounter) WriteDelta(w io.Writer) error { return s.write("delta", w) }

// large makes the large state in the first generation, and hands it on in all of
// them as it is.
func (p stateProgram) large() error {
	if p.Large == 0 {
		return nil
	}
	s, err := p.u.State("large")
	switch {
	case errors.Is(err, fs.ErrNotExist) && p.Written:
		return p.u.SetState("large", blocks(p.Large))
	case errors.Is(err, fs.ErrNotExist):
		s, err = NewState(blocks(p.Large))
	}
	if err != nil {
		return err
	}
	largeState.Store(s)
	return p.u.SetState("large", s)
}

// largeState is the one that line "read" is about.
var largeState atomic.Pointer[State]

// readLarge returns the checksum of the large state. It touches every page.
func readLarge() uint32 {
	s := largeState.Load()
	if s == nil {
		return 0
	}
	return crc32.Checksum(s.Bytes(), castagnoli)
}

// blocks writes so many bytes, in blocks that differ.
type blocks int64

func (n blocks) StateSize() int64 { return int64(n) }

func (n blocks) WriteTo(w io.Writer) (written int64, err error) {
	b := make([]byte, 1<<20)
	for written < int64(n) && err == nil {
		part := b[:min(int64(len(b)), int64(n)-written)]
		for i := 0; i < len(part); i += 64 {
			copy(part[i:], strconv.FormatInt(written+int64(i), 10))
		}
		var k int
		k, err = w.Write(part)
		written += int64(k)
	}
	return written, err
}
