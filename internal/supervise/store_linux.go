package supervise

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/go-handover/handover/internal/fd"
)

// storeLimit is how many descriptors are kept.
const storeLimit = 4096

// stored is a descriptor that is kept for the next start.
type stored struct {
	name string
	fd   int
}

// store keeps the descriptors of the service, in the order in which they came.
type store struct{ all []stored }

// add takes fd, and closes it if it is not kept: its description is stored
// already, the name is none, or the store is full.
func (s *store) add(name string, n int) error {
	err := s.refuse(name)
	if err != nil || slices.ContainsFunc(s.all, func(o stored) bool { return fd.SameDescription(o.fd, n) }) {
		_ = syscall.Close(n)
		return err
	}
	s.all = append(s.all, stored{name, n})
	return nil
}

func (s *store) refuse(name string) error {
	switch {
	case len(s.all) >= storeLimit:
		return fmt.Errorf("%d descriptors are stored, which is the limit: %q is not", storeLimit, name)
	case len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' || r == ':' }):
		return fmt.Errorf("a descriptor named %q is not stored: want at most 255 printable characters, no colon (FDNAME, sd_notify(3))", name)
	}
	return nil
}

// remove closes all of that name.
func (s *store) remove(name string) {
	s.all = slices.DeleteFunc(s.all, func(o stored) bool {
		if o.name == name {
			_ = syscall.Close(o.fd)
		}
		return o.name == name
	})
}

func (s *store) close() {
	for _, o := range s.all {
		_ = syscall.Close(o.fd)
	}
	s.all = nil
}

// files are what the command gets from descriptor 3 on.
func (s *store) files() (files []uintptr) {
	for _, o := range s.all {
		files = append(files, uintptr(o.fd))
	}
	return files
}

// environment tells of them, but for LISTEN_PID.
func (s *store) environment() []string {
	if len(s.all) == 0 {
		return nil
	}
	var names []string
	for _, o := range s.all {
		names = append(names, o.name)
	}
	return []string{"LISTEN_FDS=" + strconv.Itoa(len(s.all)), "LISTEN_FDNAMES=" + strings.Join(names, ":")}
}

// firstFD is where passed descriptors begin (SD_LISTEN_FDS_START).
const firstFD = 3

// inherit takes what this process was started with by sd_listen_fds(3). All
// are made close-on-exec before anything is started.
func (s *store) inherit() error {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil
	}
	count, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || count < 0 || count > storeLimit {
		return fmt.Errorf("LISTEN_FDS=%q: want a number up to %d", os.Getenv("LISTEN_FDS"), storeLimit)
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for i := range count {
		n := firstFD + i
		if err := fd.SetCloseOnExec(n); err != nil {
			return fmt.Errorf("LISTEN_FDS=%d, but descriptor %d is not open: %w", count, n, err)
		}
		name := "unknown"
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		if err := s.add(name, n); err != nil {
			return err
		}
	}
	return nil
}
