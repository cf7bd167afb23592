package upgrader

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// sockets is the set of what this process holds by name. Its lock is a leaf:
// it is never held while a socket is opened.
type sockets struct {
	mu    sync.Mutex
	named map[string]*socket
	moved []*socket // inherited under a name that was opened anew with another address
	open  bool      // the gates

	changed chan struct{} // has room for one

	settled bool // what was unclaimed is closed, and what turns up later is at once
}

// reserve makes name the caller's. It returns what was inherited or added
// under it, nil if nothing was.
func (ss *sockets) reserve(name string) (parked *socket, err error) {
	if err := checkSocketName(name); err != nil {
		return nil, err
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s := ss.named[name]; s != nil {
		if s.parked == nil {
			return nil, fmt.Errorf("%w %q: it is taken", ErrName, name)
		}
		parked = s
	}
	ss.named[name] = &socket{Socket: wire.Socket{Name: name}}
	return parked, nil
}

// release undoes reserve after an error.
func (ss *sockets) release(name string, parked *socket) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	delete(ss.named, name)
	switch {
	case parked == nil:
	case parked.inherited && ss.settled:
		_ = parked.drop() // the caller has an error to tell
	default:
		ss.named[name] = parked
	}
}

// put completes what reserve began. moved, if not nil, is what was inherited
// under the same name and is not used.
func (ss *sockets) put(s, moved *socket) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.named[s.Name] = s
	ss.change()
	switch {
	case moved == nil:
	case ss.settled:
		_ = moved.drop() // an address that nobody asks for any more
	default:
		ss.moved = append(ss.moved, moved)
	}
	if s.gate != nil {
		s.gate.set(ss.open)
	}
}

// park keeps s under its name until the program asks for it.
func (ss *sockets) park(s *socket) error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if there := ss.named[s.Name]; there != nil {
		there.inherited = false // the program wants it, so it stays
		return fmt.Errorf("%w %q: it is taken", ErrName, s.Name)
	}
	ss.named[s.Name] = s
	return nil
}

// claim makes what was inherited under name this process's own file, and reports
// whether it was there.
func (ss *sockets) claim(name string) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.named[name]
	if s == nil {
		return false
	}
	if s.parked != nil {
		s.Kind, s.conn, s.parked = kindFile, s.parked, nil
	}
	return true
}

// hold keeps a file of this package under a name that was not taken.
func (ss *sockets) hold(name string, f *os.File) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.named[name] = &socket{Socket: wire.Socket{Name: name, Kind: kindFile}, conn: f}
}

// letGo closes such a file, if it is there.
func (ss *sockets) letGo(name string) error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.named[name]
	delete(ss.named, name)
	if s == nil {
		return nil
	}
	if c, ok := s.conn.(io.Closer); ok {
		return c.Close()
	}
	return s.parked.Close()
}

func (ss *sockets) remove(s *socket) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.named[s.Name] == s {
		delete(ss.named, s.Name)
		ss.change()
	}
}

// change lets run know that there are others now.
func (ss *sockets) change() {
	select {
	case ss.changed <- struct{}{}:
	default: // it knows already
	}
}

func (ss *sockets) gateOf(name string) *gate {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s := ss.named[name]; s != nil && s.Kind == kindListener {
		return s.gate
	}
	return nil
}

// setGates opens or closes all gates, and decides how later ones start.
func (ss *sockets) setGates(open bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.open = open
	for _, s := range ss.named {
		if s.gate != nil {
			s.gate.set(open)
		}
	}
}

// closeUnclaimed closes what the program did not ask for, once there is no way
// back to the predecessor that had it.
func (ss *sockets) closeUnclaimed() error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	gone := ss.moved
	ss.moved, ss.settled = nil, true
	for name, s := range ss.named {
		if s.parked != nil && s.inherited {
			gone = append(gone, s)
			delete(ss.named, name)
		}
	}
	var err error
	for _, s := range gone {
		err = errors.Join(err, s.drop())
	}
	return err
}

// unlinkAll removes the paths of all unix sockets: the committed process stops.
func (ss *sockets) unlinkAll() error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	var err error
	for _, s := range ss.named {
		err = errors.Join(err, s.unlink())
	}
	for _, s := range ss.moved { // on probation they are not settled yet
		err = errors.Join(err, s.unlink())
	}
	return err
}

// unclaimed describes what was inherited and not asked for yet.
func (ss *sockets) unclaimed() []string {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	var names []string
	for _, s := range ss.moved {
		names = append(names, s.describe())
	}
	for _, s := range ss.named {
		if s.parked != nil && !s.isState() {
			names = append(names, s.describe())
		}
	}
	slices.Sort(names)
	return names
}

// duplicate returns close-on-exec duplicates of all sockets and files, which
// the caller closes, with what the manifest says of each.
func (ss *sockets) duplicate() (meta []wire.Socket, files []*os.File, err error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, s := range ss.named {
		conn := s.conn
		if s.parked != nil {
			conn = s.parked
		}
		if conn == nil || s.isState() {
			continue // reserved, not yet open; or this process's own affair
		}
		f, err := fd.Dup(conn, s.Name)
		if err != nil {
			closeAll(files)
			return nil, nil, fmt.Errorf("duplicate %s, one of %d sockets and files: %w", s.describe(), len(ss.named), err)
		}
		meta, files = append(meta, s.Socket), append(files, f)
	}
	return meta, files, nil
}

// metas returns what duplicate would say.
func (ss *sockets) metas() []wire.Socket {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	var meta []wire.Socket
	for _, s := range ss.named {
		if (s.conn != nil || s.parked != nil) && !s.isState() {
			meta = append(meta, s.Socket)
		}
	}
	return meta
}

// isSame reports that f is what this process has been given under name.
func (ss *sockets) isSame(name string, f *os.File) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, s := range append(slices.Clone(ss.moved), ss.named[name]) {
		if s == nil || s.Name != name {
			continue
		}
		conn := s.conn
		if s.parked != nil {
			conn = s.parked
		}
		if conn != nil && sameFile(conn, f) {
			return true
		}
	}
	return false
}

func sameFile(a, b syscall.Conn) bool {
	x, err := fd.AttributesOf(a)
	if err != nil {
		return false
	}
	y, err := fd.AttributesOf(b)
	return err == nil && x.Dev == y.Dev && x.Ino == y.Ino
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // duplicates: their originals live on
	}
}

func (ss *sockets) file(name string) (*os.File, error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.named[name]
	switch {
	case s == nil, s.Kind == kindListener, s.Kind == kindPacket, s.isState():
		return nil, fs.ErrNotExist
	case s.parked != nil:
		s.Kind, s.conn, s.parked = kindFile, s.parked, nil
	case s.conn == nil: // it is being opened, and is no file
		return nil, fs.ErrNotExist
	}
	return fd.Dup(s.conn, name)
}
