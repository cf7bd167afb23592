package upgrader

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// statePrefix begins the names of states among the sockets and files, with
// which they travel. The name is all that a successor knows of a descriptor
// whose sender died before its manifest.
const statePrefix = ".state."

// maxStateName is the longest name of a state, in bytes.
const maxStateName = maxName - len(statePrefix)

// stateBuffer collects small writes of a callback.
const stateBuffer = 64 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// states is what this process hands on, and how it takes what has changed. Its
// lock is a leaf.
type states struct {
	mu     sync.Mutex
	kept   map[string]io.WriterTo
	count  int                                 // how often they were written
	deltas map[string]deltaWriter              // of the attempt that is under way
	apply  map[string]func(delta []byte) error // see OnStateDelta
	busy   chan struct{}                       // has room for one: callbacks run one at a time
	taken  chan struct{}                       // the same: whose difference is told, see take
}

func newStates() states {
	return states{
		kept: map[string]io.WriterTo{}, apply: map[string]func([]byte) error{},
		busy: make(chan struct{}, 1), taken: make(chan struct{}, 1),
	}
}

// Bytes is a state that is at hand, for SetState. It is read in each attempt to
// upgrade.
type Bytes []byte

// WriteTo writes b to w.
func (b Bytes) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(b)
	return int64(n), err
}

// StateSize returns the number of bytes.
func (b Bytes) StateSize() int64 { return int64(len(b)) }

// SetState hands what data writes on to the successor, where State(name) returns
// it; nil: no longer. A later call for the same name replaces data. The names of
// states have nothing to do with those of sockets. A successor hands on only
// what it has set itself.
//
// data.WriteTo is called in every attempt to upgrade before anything is
// started, in a goroutine of its own, while this process serves; so what it
// writes is fresh, and it has to lock what it reads. An error or a panic of it
// fails the attempt, and so does one that takes longer than ReadyTimeout, for
// all states together. It may have two methods more:
//
//	StateSize() int64                how many bytes WriteTo is going to write; another number is an error
//	WriteDelta(w io.Writer) error    what has changed since WriteTo was called last, see
//	                                 Upgrader.OnStateDelta
//
// The bytes are written once, to memory that the successor maps: it needs no
// copy, and this process closes its own when the successor has started. To hand
// on a *State unchanged costs no memory and no time, however large it is; it must
// not be closed as long as it is set. Bytes is a state that is at hand.
//
// For a standby it is written when that comes, or when the upgrade that is under
// way has ended. When it is promoted it gets what
// has changed since, if no other successor has had the states written meanwhile;
// when this process dies it has what it was given.
func (u *Upgrader) SetState(name string, data io.WriterTo) error {
	if err := errors.Join(u.Err(), checkStateName(name)); err != nil {
		return fmt.Errorf("upgrader: set state %q: %w", name, err)
	}
	u.states.mu.Lock()
	defer u.states.mu.Unlock()
	if data == nil {
		delete(u.states.kept, name)
	} else {
		u.states.kept[name] = data
	}
	return nil
}

// checkSocketName says whether the program may use this name for a socket or
// file.
func checkSocketName(name string) error {
	if strings.HasPrefix(name, statePrefix) {
		return fmt.Errorf("%w %q: what begins with %q is a state: see SetState", ErrName, name, statePrefix)
	}
	return checkName(name)
}

func checkStateName(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if len(name) > maxStateName {
		return fmt.Errorf("%w: %d bytes, the limit for a state is %d", ErrName, len(name), maxStateName)
	}
	return nil
}

// State returns what the predecessor has handed on under this name. Call it
// before Ready: what is left when the upgrade is confirmed is closed. Each call
// returns another *State with the same bytes.
//
// The error is fs.ErrNotExist if there is none: in the first process, if the
// predecessor has set none, and after the upgrade. With Options.StateChecksum in
// the predecessor the bytes are compared with their checksum. If the predecessor
// dies before this process is committed, this process has what was written when
// it was started.
func (u *Upgrader) State(name string) (*State, error) {
	s, err := u.sockets.state(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("upgrader: state %q: %w", name, err)
	case err != nil:
		return nil, u.failed(fmt.Errorf("upgrader: state %q: %w", name, err))
	}
	return s, nil
}

// State is what a process was handed on under a name, or has made itself for
// that. Its methods may be called from several goroutines at once.
type State struct {
	mu   sync.Mutex
	file *os.File // sealed; nil: closed
	sum  uint32   // 0: not known
	data []byte   // mapped
}

// NewState writes data to sealed memory and maps it, so that also the process
// which has made a state can hand it on without a copy, as those do that come
// after it. The caller closes it.
func NewState(data io.WriterTo) (*State, error) {
	s, err := newState(data)
	if err != nil {
		return nil, fmt.Errorf("upgrader: new state: %w", err)
	}
	return s, nil
}

func newState(data io.WriterTo) (*State, error) {
	f, err := fd.NewMemory("state")
	if err != nil {
		return nil, err
	}
	b := bufio.NewWriterSize(f, stateBuffer)
	_, err = data.WriteTo(b)
	if err = errors.Join(err, b.Flush()); err == nil {
		err = fd.Seal(f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s, err := openState(f, 0)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

// Bytes returns the state without a copy: the memory is the predecessor's. It
// must not be written to, which is a fault, and not be read after Close, which
// is one too.
func (s *State) Bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data
}

// Len returns the number of bytes; 0 after Close.
func (s *State) Len() int { return len(s.Bytes()) }

// StateSize returns the number of bytes.
func (s *State) StateSize() int64 { return int64(s.Len()) }

// WriteTo writes the state to w. With it a *State can be given to SetState,
// which does not call it.
func (s *State) WriteTo(w io.Writer) (int64, error) { return Bytes(s.Bytes()).WriteTo(w) }

// Close gives the memory back. It may be called again.
func (s *State) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	err := errors.Join(fd.Unmap(s.data), s.file.Close())
	s.file, s.data = nil, nil
	return err
}

// again returns a duplicate of the descriptor, for the next generation.
func (s *State) again(sum bool) (*os.File, wire.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil, wire.State{}, fmt.Errorf("the State was closed: %w", os.ErrClosed)
	}
	if sum && s.sum == 0 {
		s.sum = crc32.Checksum(s.data, castagnoli)
	}
	f, err := fd.Dup(s.file, s.file.Name())
	return f, wire.State{Size: int64(len(s.data)), Sum: s.sum}, err
}

// ---- in the old process ----

// bequest returns what a successor gets: the states, written now, and duplicates
// of all sockets and files. The caller closes them.
func (u *Upgrader) bequest(ctx context.Context) (meta []wire.Socket, files []*os.File, err error) {
	states, memory, _, err := u.writeStates(ctx)
	if err != nil {
		return nil, nil, err
	}
	meta, files, err = u.sockets.duplicate()
	if err != nil {
		closeAll(memory)
		return nil, nil, err
	}
	return append(meta, states...), append(files, memory...), nil
}

// writeStates calls the callbacks of SetState, once nobody else has the states. They
// are the caller's until ctx ends. written is a number for what they write: a
// difference is from the latest on.
func (u *Upgrader) writeStates(ctx context.Context) (meta []wire.Socket, files []*os.File, written int, err error) {
	if err := u.states.take(ctx); err != nil {
		return nil, nil, 0, err
	}
	limit := u.options.ReadyTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the states were not written in %v: %w", limit, ErrTimeout))
	defer cancel()
	kept, written := u.states.begin()
	for _, name := range slices.Sorted(maps.Keys(kept)) {
		f, s, err := u.writeState(ctx, kept[name])
		if err != nil {
			closeAll(files)
			return nil, nil, 0, fmt.Errorf("state %q: %w", name, err)
		}
		s.Name = name
		_, s.Delta = kept[name].(deltaWriter)
		files = append(files, f)
		meta = append(meta, wire.Socket{Name: statePrefix + name, Kind: kindFile, State: &s})
	}
	return meta, files, written, nil
}

// take waits until nobody has the states, and has them until ctx ends. What has
// changed in a state is what has changed since it was written last: a standby that
// comes while a successor gets ready must not have it written in between.
func (ss *states) take(ctx context.Context) error {
	select {
	case ss.taken <- struct{}{}:
		context.AfterFunc(ctx, func() { <-ss.taken })
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// takeIfFree is take for one that has been given its states before, and does not
// wait: it reports whether the difference can be told.
func (ss *states) takeIfFree(ctx context.Context, written int) bool {
	select {
	case ss.taken <- struct{}{}:
		context.AfterFunc(ctx, func() { <-ss.taken })
		return ss.latest() == written
	default:
		return false
	}
}

// begin returns the states of an attempt. What tells the difference later is
// what has written the rest now.
func (ss *states) begin() (kept map[string]io.WriterTo, written int) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.deltas = map[string]deltaWriter{}
	ss.count++
	for name, data := range ss.kept {
		if d, ok := data.(deltaWriter); ok {
			ss.deltas[name] = d
		}
	}
	return maps.Clone(ss.kept), ss.count
}

// latest is the number of the latest writing.
func (ss *states) latest() int {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.count
}

func (u *Upgrader) writeState(ctx context.Context, data io.WriterTo) (*os.File, wire.State, error) {
	if s, ok := data.(*State); ok {
		return s.again(u.options.StateChecksum)
	}
	size, err := u.sizeOf(ctx, data)
	if err != nil {
		return nil, wire.State{}, err
	}
	f, err := fd.NewMemory("state")
	if err != nil {
		return nil, wire.State{}, err
	}
	s, err := u.written(ctx, f, size, func(w io.Writer) error {
		_, err := data.WriteTo(w)
		return err
	})
	if err == nil {
		err = fd.Seal(f)
	}
	if err != nil {
		return nil, wire.State{}, errors.Join(err, f.Close())
	}
	return f, s, nil
}

// sizeOf asks how many bytes a state is going to write; -1: it does not say.
func (u *Upgrader) sizeOf(ctx context.Context, data io.WriterTo) (int64, error) {
	sized, ok := data.(interface{ StateSize() int64 })
	if !ok {
		return -1, nil
	}
	var size int64
	err := u.call(ctx, func() error {
		if size = sized.StateSize(); size < 0 {
			return fmt.Errorf("its StateSize is %d: want 0 or more", size)
		}
		return nil
	})
	if err != nil {
		return 0, err // a callback that was left behind may set size later
	}
	return size, nil
}

// written lets a callback write to f. size is how many bytes that should be; -1:
// any number.
func (u *Upgrader) written(ctx context.Context, f *os.File, size int64, callback func(io.Writer) error) (wire.State, error) {
	w := &stateWriter{ctx: ctx, file: f, size: size, summed: u.options.StateChecksum}
	err := u.call(ctx, func() error {
		b := bufio.NewWriterSize(w, stateBuffer)
		if err := callback(b); err != nil {
			return err
		}
		return b.Flush()
	})
	if err != nil {
		return wire.State{}, err
	}
	if size >= 0 && w.count != size {
		return wire.State{}, fmt.Errorf("it wrote %d bytes, its StateSize was %d", w.count, size)
	}
	return wire.State{Size: w.count, Sum: w.sum}, nil
}

// call runs a callback of the program beside the caller, and waits for it no
// longer than ctx allows. One that does not end with its ctx is left behind, and
// the next one waits for it.
func (u *Upgrader) call(ctx context.Context, callback func() error) error {
	select {
	case u.states.busy <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("a callback that was called earlier has not returned: %w", context.Cause(ctx))
	}
	answer := make(chan error, 1)
	go func() {
		err := u.guarded(callback)
		<-u.states.busy
		answer <- err
	}()
	select {
	case err := <-answer:
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx) // it says so in its own words
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// guarded makes an error of a panic, which would end the process that serves.
func (u *Upgrader) guarded(callback func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			u.log.Error("state callback panicked", "pid", os.Getpid(), "stack", string(debug.Stack()))
			err = fmt.Errorf("it panicked: %v", v)
		}
	}()
	return callback()
}

// stateWriter is what a callback writes to.
type stateWriter struct {
	ctx    context.Context
	file   *os.File
	size   int64 // the most that it takes; -1: any number
	count  int64
	summed bool
	sum    uint32
}

// Write writes in pieces, so that the end of ctx is noticed, and the checksum
// finds the bytes in the cache.
func (w *stateWriter) Write(p []byte) (n int, err error) {
	const piece = 1 << 20
	for n < len(p) && err == nil {
		if w.ctx.Err() != nil {
			return n, context.Cause(w.ctx)
		}
		part := p[n:min(n+piece, len(p))]
		if w.size >= 0 && w.count+int64(len(part)) > w.size {
			return n, fmt.Errorf("it writes more than the %d bytes of its StateSize", w.size)
		}
		var k int
		k, err = w.file.Write(part)
		if w.summed {
			w.sum = crc32.Update(w.sum, castagnoli, part[:k])
		}
		n += k
		w.count += int64(k)
	}
	return n, err
}

// ---- in the new process ----

// isState reports that what was inherited is a state. Without a manifest only
// its name says so.
func (s *socket) isState() bool {
	return s.State != nil || s.Kind == "" && strings.HasPrefix(s.Name, statePrefix)
}

// checkState compares a state's descriptor with what the manifest says of it.
func (s *socket) checkState(m wire.Socket) error {
	if m.State == nil {
		return nil
	}
	if m.Name != statePrefix+m.State.Name {
		return fmt.Errorf("the manifest calls the state %q %q", m.Name, m.State.Name)
	}
	size, err := fd.Sealed(s.parked)
	if err != nil {
		return fmt.Errorf("the manifest says that %q is a state: %w", m.Name, err)
	}
	if size != m.State.Size {
		return fmt.Errorf("the manifest says that the state %q has %d bytes, it has %d", m.State.Name, m.State.Size, size)
	}
	return nil
}

// state maps a state that was inherited.
func (ss *sockets) state(name string) (*State, error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.named[statePrefix+name]
	if s == nil || s.parked == nil || !s.isState() {
		return nil, fs.ErrNotExist
	}
	f, err := fd.Dup(s.parked, name)
	if err != nil {
		return nil, err
	}
	var sum uint32
	if s.State != nil {
		sum = s.State.Sum
	}
	state, err := openState(f, sum)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return state, nil
}

// openState maps f, which is the State's if there is no error.
func openState(f *os.File, sum uint32) (*State, error) {
	size, err := fd.Sealed(f)
	if err != nil {
		return nil, err
	}
	data, err := fd.Map(f, size)
	if err != nil {
		return nil, err
	}
	if err := checkSum(data, sum); err != nil {
		return nil, errors.Join(err, fd.Unmap(data))
	}
	return &State{file: f, data: data, sum: sum}, nil
}

// checkSum compares data with a checksum; 0: there is none.
func checkSum(data []byte, want uint32) error {
	if want == 0 {
		return nil
	}
	if got := crc32.Checksum(data, castagnoli); got != want {
		return fmt.Errorf("the checksum of its %d bytes is %08x, the predecessor says %08x", len(data), got, want)
	}
	return nil
}
