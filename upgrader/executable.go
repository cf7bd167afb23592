package upgrader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/kardianos/osext"
)

// executable is what the successor will be: a path, not an inode, because the
// binary there is replaced between upgrades.
type executable struct {
	file    string // absolute; symlinks are kept, so that a flipped one takes effect
	initial string // the directory in which this process started; empty: it was deleted
}

// resolveExecutable finds the path under which this process was invoked, as
// long as argv[0] and the working directory still mean what they meant at
// start. configured is Options.Executable.
func resolveExecutable(configured, argv0 string) (executable, error) {
	wd, err := os.Getwd()
	if err != nil {
		wd = ""
	}
	e := executable{initial: wd}
	if configured != "" {
		if e.file, err = filepath.Abs(configured); err != nil {
			return executable{}, fmt.Errorf("executable %q: %w", configured, err)
		}
		return e, nil
	}
	running, err := osext.Executable() // symlinks resolved
	if found := invoked(argv0, running); found != "" {
		e.file = found
		return e, nil
	}
	if err != nil {
		return executable{}, fmt.Errorf("find the executable of %q: %w: set Options.Executable", argv0, err)
	}
	e.file = running
	return e, nil
}

// invoked returns the absolute path that argv0 names, if the running file lies
// there: argv[0] is only what the parent claims.
func invoked(argv0, running string) string {
	found, err := exec.LookPath(argv0)
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return ""
	}
	path, err := filepath.Abs(found)
	if err != nil {
		return ""
	}
	there, err := os.Stat(path)
	if err != nil {
		return ""
	}
	// The binary may have been replaced since it started, so this compares what
	// lies at the two places now.
	if self, err := os.Stat(running); err != nil || !os.SameFile(there, self) {
		return ""
	}
	return path
}

func (e executable) path() string { return e.file }

// dir returns the directory in which the successor starts: the one in which
// this process did, because relative paths in the arguments mean that one. If
// it is gone, the successor starts wherever this process is.
func (e executable) dir(configured string) string {
	if configured != "" {
		return configured
	}
	if fi, err := os.Stat(e.initial); err != nil || !fi.IsDir() {
		return ""
	}
	return e.initial
}

// checkExecutable finds before the fork what exec would refuse, and what it
// would not: a file for another machine runs as a script in some shells.
func checkExecutable(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err // a *fs.PathError names the path
	}
	return checkFile(path, fi, func() (header, error) { return readHeaderOf(path) })
}

func checkFile(path string, fi fs.FileInfo, read func() (header, error)) error {
	bad := func(why string, err error) error {
		return &fs.PathError{Op: "execute", Path: path, Err: fmt.Errorf("%s: %w", why, err)}
	}
	switch {
	case fi.IsDir():
		return bad("it is a directory", syscall.EISDIR)
	case !fi.Mode().IsRegular():
		return bad("it is not a regular file", syscall.EACCES)
	case fi.Mode().Perm()&0o111 == 0:
		return bad("no execute permission, chmod +x it", syscall.EACCES)
	case fi.Size() == 0:
		return bad("it is empty", syscall.ENOEXEC)
	}
	ours, _ := readHeaderOf(selfPath)
	if !ours.isELF() {
		return nil // not a system with ELF files: exec decides
	}
	theirs, err := read()
	switch {
	case err != nil:
		return bad("its header cannot be read", err)
	case theirs.isScript():
		return nil
	case !theirs.isELF():
		return bad("it is neither an ELF file nor a script", syscall.ENOEXEC)
	case theirs.target() != ours.target():
		return bad("it is an ELF file for another machine", syscall.ENOEXEC)
	}
	return nil
}

// selfPath is the running file, also after it was replaced on disk.
const selfPath = "/proc/self/exe"

// header is the beginning of an ELF file (elf(5)): magic, class, data
// encoding, and the machine at offset 18.
type header [20]byte

func readHeaderOf(path string) (header, error) {
	f, err := os.Open(path)
	if err != nil {
		return header{}, err
	}
	defer f.Close()
	return readHeader(f)
}

func readHeader(f io.ReaderAt) (header, error) {
	var h header
	if _, err := f.ReadAt(h[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return h, err
	}
	return h, nil
}

func (h header) isELF() bool    { return string(h[:4]) == "\x7fELF" }
func (h header) isScript() bool { return string(h[:2]) == "#!" }

// target is what must be equal in two files for the same machine.
func (h header) target() [3]uint16 {
	order := binary.ByteOrder(binary.LittleEndian)
	if h[5] == 2 {
		order = binary.BigEndian
	}
	return [3]uint16{uint16(h[4]), uint16(h[5]), order.Uint16(h[18:])}
}
