package upgrader

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/go-handover/handover/internal/fd"
)

// byDescriptor says that an image is executed by its descriptor, so that it does
// not matter what lies at its path.
const byDescriptor = true

func descriptorPath(n int) string { return descriptors + strconv.Itoa(n) }

// lend returns a path that leads to the open file, for as long as done is not
// called. It is of a descriptor of its own: a check that was given up may go on
// to read, and must not find another file there.
func (i *image) lend() (path string, done func(), err error) {
	f, err := fd.Dup(i.file, i.path)
	if err != nil {
		return "", nil, err
	}
	path = descriptorPath(int(f.Fd())) // nobody else has it, and it is no socket
	fi, err := os.Stat(path)
	if err == nil {
		dev, ino := fd.Identity(fi)
		if dev == i.was.Dev && ino == i.was.Ino {
			return path, func() { _ = f.Close() }, nil // nothing was written
		}
		err = fmt.Errorf("%s is another file", path)
	}
	_ = f.Close()
	return "", nil, fmt.Errorf("it needs /proc: %w", err)
}

// inherited returns the descriptors that the successor gets, and the path by
// which it executes the image. An open one is the last of them: forkExec moves
// the others about, so that only a number from this list is sure to be the same
// file before and after. Its price is that the successor has to close it.
func (i *image) inherited(files []*os.File) (path string, all []*os.File) {
	if i.file == nil {
		return i.path, files
	}
	return descriptorPath(len(files)), append(files, i.file)
}

// self is what the kernel says of the running process.
const (
	selfComm     = "/proc/self/comm"
	selfThreads  = "/proc/self/task/*/comm"
	renamePasses = 10
)

// wasExecutedByDescriptor reports that the predecessor has executed this process
// by a descriptor, which it closes. The kernel has named the process after the
// last element of that path, "12": it gets its own name, that of argv[0].
// Nothing else says what the descriptor is, so the file behind it is looked at.
func wasExecutedByDescriptor(argv0 string, taken func(n int) bool) bool {
	comm, err := os.ReadFile(selfComm)
	if err != nil {
		return false
	}
	n, err := strconv.Atoi(strings.TrimSuffix(string(comm), "\n"))
	if err != nil || n < 3 || taken(n) {
		return false
	}
	running, err := os.Stat(selfPath)
	if err != nil {
		return false
	}
	if there, err := os.Stat(descriptorPath(n)); err != nil || !os.SameFile(there, running) {
		return false
	}
	if f, err := fd.Inherit(n, "executable"); err == nil {
		_ = f.Close() // nothing was written
	}
	nameThreads(string(comm), filepath.Base(argv0))
	return true
}

// nameThreads renames the threads that have a name. One that was not renamed yet
// may start another, which has its name.
func nameThreads(from, to string) {
	for range renamePasses {
		threads, _ := filepath.Glob(selfThreads) // the pattern is good
		renamed := false
		for _, path := range threads {
			if comm, err := os.ReadFile(path); err == nil && string(comm) == from {
				renamed = os.WriteFile(path, []byte(to), 0) == nil || renamed // the kernel cuts it
			}
		}
		if !renamed {
			return
		}
	}
}
