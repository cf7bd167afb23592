package supervise

import (
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/fd"
)

// passedUp are the assignments that concern who supervises the supervisor. The
// others are between the service and us.
var passedUp = []string{"READY", "STATUS", "ERRNO", "RELOADING", "MONOTONIC_USEC", "STOPPING", "EXTEND_TIMEOUT_USEC", "WATCHDOG"}

// drain reads all that has been sent until now.
func (s *supervisor) drain() error {
	for {
		m, ok, err := s.notify.Read()
		if err != nil {
			return err
		}
		if !ok {
			return nil
		}
		s.notified(m)
	}
}

// notified acts on a message, if it is from the main process.
func (s *supervisor) notified(m fd.Message) {
	said := map[string]string{}
	var up []string
	for line := range strings.SplitSeq(m.Text, "\n") {
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		said[name] = value
		if slices.Contains(passedUp, name) {
			up = append(up, line)
		}
	}
	if m.PID != s.main || s.main == 0 {
		closeAll(m.FDs)
		s.claim(m.PID, said["MAINPID"])
		return
	}
	s.keep(said, m.FDs)
	// Before what is told: READY=1 beside MAINPID= is the successor's.
	if pid, ok := said["MAINPID"]; ok {
		s.follow(pid)
	}
	if said["READY"] == "1" {
		s.tellReadyFD()
	}
	if said["STOPPING"] == "1" {
		s.deliberate = true
	}
	s.tell(up)
}

// claim notes that another process says that it is the main one. It is, once there
// is none: a successor whose predecessor has died before it named it.
func (s *supervisor) claim(pid int, value string) {
	if pid == 0 || pid == s.main || value != strconv.Itoa(pid) {
		return
	}
	s.claimant = pid
	if s.main == 0 && !s.told {
		s.inherit()
	}
}

// inherit makes the claimant, if it lives, the main process, and reports that.
func (s *supervisor) inherit() bool {
	pid := s.claimant
	s.claimant = 0
	if pid == 0 || !isDescendant(pid) || isZombie(pid) {
		return false
	}
	s.logf("main process is %d, which says so", pid)
	s.ending, s.restart, s.kill = false, nil, nil
	s.setMain(pid)
	if s.stopping != 0 {
		s.signal(s.stopping)
	}
	return true
}

func closeAll(fds []int) {
	for _, n := range fds {
		_ = syscall.Close(n)
	}
}

// keep stores what came with a message, or closes it: for BARRIER=1 that is
// what its sender waits for.
func (s *supervisor) keep(said map[string]string, fds []int) {
	name, named := said["FDNAME"]
	if said["FDSTOREREMOVE"] == "1" && named {
		s.store.remove(name)
	}
	if said["FDSTORE"] != "1" || s.NoStore {
		closeAll(fds)
		return
	}
	if !named {
		name = "stored"
	}
	for _, n := range fds {
		if err := s.store.add(name, n); err != nil {
			s.logf("%v", err)
		}
	}
}

// follow makes pid the main process, if it is one of the service's.
func (s *supervisor) follow(value string) {
	pid, err := strconv.Atoi(value)
	switch {
	case err != nil || pid <= 0 || !isDescendant(pid):
		s.logf("process %d names %q as its successor: not a process of this service; ignored", s.main, value)
		// It may have ended before it was named. Its predecessor leaves all the
		// same, and that is then no success. If it is there, it was started by
		// somebody else, and the service goes on without us.
		s.deserted = err != nil || pid <= 0 || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
		return
	case pid == s.main: // its successor is gone, and it stays
		s.deserted = false
		return
	}
	s.logf("main process is %d, was %d", pid, s.main)
	s.setMain(pid)
	if s.stopping != 0 { // its predecessor was told; it has not been
		s.signal(s.stopping)
	}
}

// tellReadyFD writes the newline, once.
func (s *supervisor) tellReadyFD() {
	if s.ReadyFD == 0 {
		return
	}
	if _, err := syscall.Write(s.ReadyFD, []byte("\n")); err != nil {
		s.logf("-ready-fd %d: %v", s.ReadyFD, err)
	}
	_ = syscall.Close(s.ReadyFD)
	s.ReadyFD = 0
}

// tellTimeout is how long a manager that does not read may hold up everything else.
const tellTimeout = time.Second

// tell passes assignments on, in one message, as they came.
func (s *supervisor) tell(up []string) {
	if s.up == nil || len(up) == 0 {
		return
	}
	_ = s.up.SetWriteDeadline(time.Now().Add(tellTimeout)) // Write says so if it fails
	if _, err := s.up.Write([]byte(strings.Join(up, "\n"))); err != nil {
		s.logf("NOTIFY_SOCKET: %v", err)
	}
}

// dialUp connects with who supervises us, if anybody does.
func dialUp() (*net.UnixConn, error) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil, nil
	}
	return net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
}
