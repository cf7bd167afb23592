package upgrader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/go-handover/handover/internal/fd"
)

// image is the file that the successor will execute.
type image struct {
	path string        // as the operator knows it, and the successor's argv[0]
	file *os.File      // opened before a Preflight looks at it; nil: there is none
	was  fd.Attributes // when it was opened
}

// openImage opens the file that is to be checked and then executed, once.
func openImage(path string) (*image, error) {
	// O_NONBLOCK: a fifo in its place must not hold up the attempt.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	i := &image{path: path, file: f}
	if err := i.check(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return i, nil
}

// check is checkExecutable, and refuses a script: its interpreter opens the file
// again and reads it bit by bit, so that it can run what nobody has checked.
func (i *image) check() error {
	fi, err := i.file.Stat()
	if err != nil {
		return err
	}
	read := func() (header, error) { return readHeader(i.file) }
	if err := checkFile(i.path, fi, read); err != nil {
		return err
	}
	if h, err := read(); err == nil && h.isScript() {
		return &fs.PathError{Op: "execute", Path: i.path, Err: errScript}
	}
	i.was, err = fd.AttributesOf(i.file)
	return err
}

var (
	errScript = errors.New("it is a script, which can change after a Preflight has checked it: " +
		"set Options.Executable to the program that it executes")
	errChanged = errors.New("preflight: it was changed after it was opened for the check: write beside it and rename")
	errMoved   = errors.New("preflight: another file has taken its place after it was opened for the check")
)

// unchanged fails if what would be executed now is not what was checked: a file
// that was written to in place is the same one with other bytes.
func (i *image) unchanged() error {
	if i.file == nil {
		return nil
	}
	now, err := fd.AttributesOf(i.file)
	if err != nil {
		return err
	}
	if i.moved() {
		if !byDescriptor {
			return errMoved
		}
		now.Changed = i.was.Changed // losing a name is a change, too
	}
	if now != i.was {
		return errChanged
	}
	return nil
}

// moved reports that the path does not lead to the file any more.
func (i *image) moved() bool {
	fi, err := os.Stat(i.path)
	if err != nil {
		return true
	}
	dev, ino := fd.Identity(fi)
	return dev != i.was.Dev || ino != i.was.Ino
}

func (i *image) Close() error {
	if i.file == nil {
		return nil
	}
	return i.file.Close()
}

// execError lets an error name the file as the operator knows it.
func (i *image) execError(path string, err error) error {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) && pe.Path == path {
		pe.Path = i.path
	}
	return err
}

// busy is the error for a file that exec refuses for too long.
func (i *image) busy() error {
	return fmt.Errorf("%w: %s is still being written: write beside it and rename", syscall.ETXTBSY, i.path)
}
