package client

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// PIDFile is a server's, with the two names beside it that exist while an
// upgrade is under way (docs/adr/0003).
type PIDFile struct {
	Path string
	Next string // of the process that is to be committed
	Prev string // of the one that can take the service back
}

// PIDFileAt returns the three names of the pidfile at path.
func PIDFileAt(path string) PIDFile {
	dir, base := filepath.Split(path)
	return PIDFile{path, filepath.Join(dir, "."+base+".next"), filepath.Join(dir, "."+base+".prev")}
}

// Named returns the pid in the file at path.
func Named(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("%s: %.32q is not a pid", path, text)
	}
	return pid, nil
}

// Sight is what a Witness has seen.
type Sight int

// What can be seen of an upgrade, in this order.
const (
	Nothing    Sight = iota
	Committed        // the new process serves, and the old one can take the service back
	Upgraded         // there is no way back
	Failed           // the old process has never stopped serving
	RolledBack       // it serves again
)

// Witness sees an upgrade from outside. The inode of the pidfile changes when
// the new process is committed, and comes back when it is rolled back, which is
// possible as long as the name for it is there. An attempt that has ended
// without a new process gives the old file a new time. One that is rolled back
// between two looks is taken for one that has failed: the old process serves
// after either.
type Witness struct {
	PIDFile
	before    os.FileInfo
	committed bool
}

// ErrBusy is returned by Witness if an upgrade is under way.
var ErrBusy = errors.New("an upgrade is under way")

// Witness returns one for the upgrade that is asked for next.
func (f PIDFile) Witness() (*Witness, error) {
	l := f.look()
	if l.wayBack || l.preparing {
		return nil, ErrBusy
	}
	if l.file == nil {
		return nil, fmt.Errorf("%s: %w", f.Path, fs.ErrNotExist)
	}
	return &Witness{PIDFile: f, before: l.file}, nil
}

// Look looks once, or twice at what must have been so all the time: the
// processes do not wait between two looks. It returns the pid of the new process
// if there is one. Whether a process lives alive says.
func (w *Witness) Look(alive func(pid int) bool) (s Sight, pid int) {
	l := w.look()
	switch {
	case l.file == nil:
	case os.SameFile(l.file, w.before):
		switch {
		case l.file.ModTime().Equal(w.before.ModTime()) || !w.still(l):
		case w.committed:
			return RolledBack, 0
		default:
			return Failed, 0
		}
	default:
		over := !l.wayBack && w.still(l)
		pid, err := Named(w.Path)
		switch {
		case err != nil: // another look
		case over && alive(pid):
			return Upgraded, pid
		default:
			w.committed = true
			return Committed, pid
		}
	}
	return Nothing, 0
}

// look is what the pidfile says at one moment.
type look struct {
	file      os.FileInfo // nil: it is not there
	wayBack   bool        // the old process can take the service back
	preparing bool        // somebody is to be committed
}

// look looks at the file first. At a commit the way back is there before the new
// file is, so who sees the new file and then no way back sees the end.
func (f PIDFile) look() look {
	var l look
	if fi, err := os.Stat(f.Path); err == nil {
		l.file = fi
	}
	l.wayBack, l.preparing = Exists(f.Prev), Exists(f.Next)
	return l
}

// still reports that the pidfile is the one that l saw.
func (f PIDFile) still(l look) bool {
	now := f.look()
	return now.file != nil && os.SameFile(now.file, l.file)
}

// Exists reports that there is something at path.
func Exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
