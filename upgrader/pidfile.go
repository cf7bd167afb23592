package upgrader

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/go-handover/handover/internal/fd"
)

// A PIDFileHeldError says that another instance serves with this pidfile, or
// is starting with it. New returns it, and an upgrade that finds a stranger's
// file in the place of its own.
type PIDFileHeldError struct {
	Path string
	PID  int // as that instance wrote it; 0: not readable
}

func (e *PIDFileHeldError) Error() string {
	holder := "another process"
	if e.PID != 0 {
		holder = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("%s is held by %s: upgrade or stop that one, or choose another PIDFile", e.Path, holder)
}

// pidfile is the file that names the committed process. A reader sees one
// whole pid of a process that serves, and never no file, while the service
// lives: the content is written before rename(2) puts the file at its path.
//
// The lock is the truth, not the pid: each generation holds flock(2) on an
// inode of its own for life. A file that nobody has locked is stale whatever
// it says, because pids are used again, in containers the same low ones at
// each start.
//
// Two more names in the same directory are made by nobody but the holder of
// the lock, so one of each is enough, and the next holder clears what a crash
// leaves behind:
//
//	.BASE.next  the inode of the process that is to be committed next
//	.BASE.prev  the predecessor's inode while it can still take the service
//	            back; scripts may ask for its existence
//
// The time of last modification says when the last attempt at an upgrade
// ended, if the process is still the same: upgradectl -pidfile waits for it.
//
// Which process owns the file is read from the file system: the one whose
// inode is at path. A nil pidfile is none, and its methods do nothing. The
// methods are called from one goroutine.
type pidfile struct {
	path string   // absolute
	self *os.File // this process's inode, locked; nil once it was given up
	made bool     // self is this process's creation, not its predecessor's

	next      *os.File // the successor's inode during an attempt, locked
	committed bool     // next is at path

	// predecessor is what a successor found at path. Once the predecessor is
	// known to be gone its lock is no hindrance: the kernel closes the files of
	// a dead process one by one, and the channel may be first by milliseconds.
	predecessor os.FileInfo
}

// openPIDFile prepares the pidfile of a process without a predecessor. It
// leaves path alone: the process does not serve yet.
func openPIDFile(path string) (*pidfile, error) {
	if path == "" {
		return nil, nil
	}
	if !fd.CanLock {
		return nil, fmt.Errorf("PIDFile needs flock: %w", errors.ErrUnsupported)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, during("open pidfile", err)
	}
	p := &pidfile{path: abs}
	if err := p.open(); err != nil {
		return nil, during("open pidfile", err)
	}
	return p, nil
}

// pidfileHeld reports that a process serves with this pidfile.
func pidfileHeld(path string) bool {
	f, err := openRegular(path)
	if err != nil {
		return false
	}
	defer f.Close()
	held, err := fd.Locked(f)
	return err == nil && held
}

// succeedPIDFile prepares the pidfile of a standby whose predecessor has died.
// What is at path is the dead one's.
func succeedPIDFile(path string) (*pidfile, error) {
	if path == "" {
		return nil, nil
	}
	p := &pidfile{path: path}
	there, err := os.Lstat(path)
	if err := unlessMissing(err); err != nil {
		return nil, during("open pidfile", err)
	}
	p.predecessor = there
	if err := p.open(); err != nil {
		return nil, during("open pidfile", err)
	}
	return p, nil
}

// open looks at path twice. The first look spares a living service the sight
// of a foreign .BASE.next; only the second counts, because nobody else can put
// a file at path while that name is ours.
func (p *pidfile) open() error {
	if err := p.vacant(); err != nil {
		return err
	}
	f, err := p.claimNext()
	if err != nil {
		return err
	}
	p.self, p.made = f, true
	if err := errors.Join(p.vacant(), writePID(f, os.Getpid())); err != nil {
		return errors.Join(err, p.close())
	}
	return nil
}

// inheritPIDFile takes over the locked file that the predecessor has prepared
// for this process, and owns f, also with an error. Predecessor and successor
// share the open file description and so the lock: there is no moment in which
// nobody holds it.
func inheritPIDFile(path string, f *os.File) (*pidfile, error) {
	p := &pidfile{path: path, self: f}
	if err := p.inherit(); err != nil {
		return nil, during("inherit pidfile", errors.Join(err, f.Close()))
	}
	return p, nil
}

func (p *pidfile) inherit() error {
	if !filepath.IsAbs(p.path) {
		return fmt.Errorf("%s is not an absolute path", p.path)
	}
	locked, err := fd.TryLock(p.self)
	if err != nil {
		return err
	}
	if !locked {
		return &PIDFileHeldError{Path: p.path, PID: readPID(p.self)}
	}
	// In this order: it may be renamed, from there to here, at this instant.
	if !names(p.nextPath(), p.self) && !names(p.path, p.self) {
		return fmt.Errorf("the inherited file is neither %s nor %s", p.path, p.nextPath())
	}
	if p.predecessor, err = os.Lstat(p.path); err != nil {
		return unlessMissing(err)
	}
	if names(p.path, p.self) {
		p.predecessor = nil
	}
	return nil
}

// install makes path name this process, which serves now and from which no
// predecessor takes the service back any more. It may be called again.
func (p *pidfile) install() error {
	if p == nil || p.self == nil {
		return nil
	}
	if !names(p.path, p.self) {
		if err := p.put(); err != nil {
			return during("install pidfile", err)
		}
	}
	p.predecessor = nil
	return during("install pidfile", removeIfThere(p.prevPath()))
}

// put places an inode of this process at path: its own, if that is still at
// .BASE.next, or a new one if somebody has deleted it.
func (p *pidfile) put() error {
	if err := p.vacant(); err != nil {
		return err
	}
	f := p.self
	if !names(p.nextPath(), f) {
		var err error
		if f, err = p.claimNext(); err != nil {
			return err
		}
	}
	err := writePID(f, os.Getpid())
	if err == nil {
		err = os.Rename(p.nextPath(), p.path)
	}
	if err != nil && f != p.self {
		return errors.Join(err, os.Remove(p.nextPath()), f.Close())
	}
	if err != nil {
		return err
	}
	return p.become(f)
}

// become makes f, which is at path, this process's inode.
func (p *pidfile) become(f *os.File) error {
	old := p.self
	p.self = f
	if old == f {
		return nil
	}
	return old.Close()
}

// prepare makes ready for a successor while nothing has been started yet, so
// that a full disk or a read-only directory is found now. It puts path back if
// somebody has deleted it. The file that it returns, for the successor to
// inherit, remains p's.
func (p *pidfile) prepare() (*os.File, error) {
	if p == nil || p.self == nil {
		return nil, nil
	}
	if err := p.reset(); err != nil {
		return nil, during("prepare pidfile", err)
	}
	f, err := p.claimNext()
	if err != nil {
		return nil, during("prepare pidfile", err)
	}
	if err := writeText(f, strings.Repeat(" ", maxPIDText)); err != nil {
		return nil, during("prepare pidfile", errors.Join(err, os.Remove(p.nextPath()), f.Close()))
	}
	p.next = f
	return f, nil
}

// reset brings back the state between two attempts, if the last one could not
// be rolled back whole, or somebody meddled with the file.
func (p *pidfile) reset() error {
	if p.next != nil {
		if err := p.rollback(); err != nil {
			return err
		}
	}
	if names(p.path, p.self) {
		return nil
	}
	return p.put()
}

// name writes the successor's pid, which is known after the fork, into the
// file that is not at path yet.
func (p *pidfile) name(pid int) error {
	if p == nil || p.next == nil {
		return nil
	}
	return during("write pidfile", writePID(p.next, pid))
}

// commit makes path name the successor. If it fails nothing has happened.
func (p *pidfile) commit() error {
	if p == nil || p.next == nil {
		return nil
	}
	if !names(p.path, p.self) {
		return fmt.Errorf("commit pidfile: somebody has removed or replaced %s", p.path)
	}
	err := removeIfThere(p.prevPath())
	if err == nil {
		err = os.Link(p.path, p.prevPath())
	}
	if err == nil {
		err = os.Rename(p.nextPath(), p.path)
	}
	if err != nil {
		return during("commit pidfile", errors.Join(err, removeNamed(p.prevPath(), p.self)))
	}
	p.committed = true
	return nil
}

// rollback makes path name this process again, and forgets the successor's
// file. It may be called after any failure, and again. It creates nothing, so
// that it works on a full disk, unless somebody has deleted .BASE.prev.
func (p *pidfile) rollback() error {
	if p == nil || p.self == nil {
		return nil
	}
	if err := p.takeBack(); err != nil {
		return during("roll back pidfile", err)
	}
	err := errors.Join(removeNamed(p.prevPath(), p.self), removeNamed(p.nextPath(), p.next), closeFile(&p.next))
	return during("roll back pidfile", err)
}

// stamp sets the time of last modification: an attempt has ended, this process
// serves, and takes the next trigger.
func (p *pidfile) stamp() error {
	if p == nil || !names(p.path, p.self) {
		return nil
	}
	now := time.Now()
	return during("stamp pidfile", os.Chtimes(p.path, now, now))
}

func (p *pidfile) takeBack() error {
	if !p.committed {
		return nil
	}
	var err error
	switch {
	case names(p.path, p.self): // somebody was quicker, by hand
	case names(p.prevPath(), p.self):
		err = os.Rename(p.prevPath(), p.path)
	default:
		err = p.put()
	}
	p.committed = err != nil
	return err
}

// confirm gives the file up: it is the successor's from now on. .BASE.prev is
// left to the successor's install, so that its absence says that the successor
// has heard of it, and takes the next trigger.
func (p *pidfile) confirm() error {
	if p == nil || p.self == nil {
		return nil
	}
	return during("confirm pidfile", p.closeFiles())
}

// remove ends the pidfile with the service. It removes nothing that is not this
// process's: after confirm that is nothing at all. It may be called again.
func (p *pidfile) remove() error {
	if p == nil || p.self == nil {
		return nil
	}
	err := removeNamed(p.nextPath(), p.next)
	if names(p.path, p.self) {
		err = errors.Join(err, removeIfThere(p.path), removeIfThere(p.prevPath()))
	}
	return during("remove pidfile", errors.Join(err, p.close()))
}

// close gives up without having been committed. It does not touch path, nor
// what the predecessor has made.
func (p *pidfile) close() error {
	if p == nil || p.self == nil {
		return nil
	}
	var err error
	if p.made {
		err = removeNamed(p.nextPath(), p.self)
	}
	return during("close pidfile", errors.Join(err, p.closeFiles()))
}

// closeFiles ends this process's hold on the locks. Those that it shares with
// another process live on there.
func (p *pidfile) closeFiles() error {
	return errors.Join(closeFile(&p.next), closeFile(&p.self))
}

func (p *pidfile) nextPath() string { return p.beside("next") }
func (p *pidfile) prevPath() string { return p.beside("prev") }

func (p *pidfile) beside(suffix string) string {
	dir, base := filepath.Split(p.path)
	return filepath.Join(dir, "."+base+"."+suffix)
}

// vacant says why path must not be replaced: a living stranger holds it, or it
// is no file. This attempt's own inode, and that of a predecessor which is
// gone, are no hindrance.
func (p *pidfile) vacant() error {
	f, err := openRegular(p.path)
	if err != nil {
		return unlessMissing(err)
	}
	defer f.Close()
	if names(p.path, p.next) || p.namesPredecessor() {
		return nil
	}
	locked, err := fd.Locked(f)
	if err != nil {
		return err
	}
	if locked {
		return &PIDFileHeldError{Path: p.path, PID: readPID(f)}
	}
	return nil
}

// namesPredecessor reports whether path still is what this process found there.
// The time tells that inode from a later one of the same number.
func (p *pidfile) namesPredecessor() bool {
	if p.predecessor == nil {
		return false
	}
	there, err := os.Lstat(p.path)
	return err == nil && os.SameFile(there, p.predecessor) && there.ModTime().Equal(p.predecessor.ModTime())
}

// claimNext creates .BASE.next and locks it. Whoever holds that name alone may
// put a file at path.
func (p *pidfile) claimNext() (*os.File, error) {
	f, err := p.createNext()
	if !errors.Is(err, fs.ErrExist) {
		return f, err
	}
	if err := p.clearNext(); err != nil {
		return nil, err
	}
	f, err = p.createNext()
	if errors.Is(err, fs.ErrExist) { // somebody was quicker
		err = &PIDFileHeldError{Path: p.path}
	}
	return f, err
}

func (p *pidfile) createNext() (*os.File, error) {
	f, err := os.OpenFile(p.nextPath(), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	locked, err := fd.TryLock(f)
	if err == nil {
		err = f.Chmod(0o644) // whatever the umask
	}
	switch {
	case err != nil:
		return nil, errors.Join(err, os.Remove(f.Name()), f.Close())
	case !locked || !names(f.Name(), f):
		// Before it was locked, another instance took it for a leftover.
		return nil, errors.Join(&PIDFileHeldError{Path: p.path}, f.Close())
	}
	return f, nil
}

// clearNext removes what a crash has left. It does not use the leftover again,
// because that can have other names and other rights.
func (p *pidfile) clearNext() error {
	f, err := openRegular(p.nextPath())
	if err != nil {
		return unlessMissing(err)
	}
	defer f.Close()
	locked, err := fd.TryLock(f)
	if err != nil {
		return err
	}
	if !locked {
		return &PIDFileHeldError{Path: p.path, PID: readPID(f)}
	}
	return removeNamed(p.nextPath(), f)
}

// openRegular opens a file for reading. It refuses a symbolic link: a rename
// would replace the link and leave the file that it points to.
func openRegular(path string) (*os.File, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if fi.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(path)
		return nil, errors.Join(fmt.Errorf("%s is a symbolic link to %q: name the file itself", path, target), err)
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file but %v", path, fi.Mode())
	}
	return fd.OpenNoFollow(path)
}

// names reports whether f, which may be nil, is what path names. An error
// counts as no; whatever is done about that meets the same error.
func names(path string, f *os.File) bool {
	there, err := os.Lstat(path)
	if err != nil || f == nil {
		return false
	}
	fi, err := f.Stat()
	return err == nil && os.SameFile(there, fi)
}

func removeNamed(path string, f *os.File) error {
	if !names(path, f) {
		return nil
	}
	return removeIfThere(path)
}

func removeIfThere(path string) error { return unlessMissing(os.Remove(path)) }

func unlessMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func closeFile(f **os.File) error {
	if *f == nil {
		return nil
	}
	err := (*f).Close()
	*f = nil
	return err
}

// maxPIDText is the length of the longest content: pid_t has 31 bits.
const maxPIDText = len("2147483647\n")

// writePID makes f's content the line that readers know from every pidfile. It
// writes over what prepare has reserved.
func writePID(f *os.File, pid int) error {
	return writeText(f, strconv.Itoa(pid)+"\n")
}

func writeText(f *os.File, text string) error {
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	if err := f.Truncate(int64(len(text))); err != nil {
		return err
	}
	return f.Sync()
}

// readPID returns the pid in a pidfile, 0 if there is none to be read.
func readPID(f *os.File) int {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 64))
	if err != nil {
		return 0
	}
	return parsePID(string(b))
}

// parsePID reads the content of a pidfile, which a stranger may have written. 0
// means that it is no pid.
func parsePID(s string) int {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil || n < 0 || n > math.MaxInt32 {
		return 0
	}
	return int(n)
}

// during says in which action err happened.
func during(action string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", action, err)
}
