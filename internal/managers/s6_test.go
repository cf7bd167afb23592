//go:build linux

package managers

import (
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// s6 is s6-svscan with s6-supervise and contrib/s6.
type s6 struct {
	t   *testing.T
	dir string
}

func TestS6(t *testing.T) {
	t.Parallel()
	installed(t, "s6", "s6-svscan", "s6-svc", "s6-svstat")
	live(t, func(t *testing.T, flags string) *service { return openS6(newHome(t), flags) }, unnamed)
}

func openS6(h home, flags string) *service {
	h.t.Helper()
	h.contrib("s6/notification-fd")
	dir := filepath.Dir(h.contrib("s6/run"))
	return &service{Server: h.start(nil, flags, "s6-supervise", dir), home: h, manager: s6{h.t, dir}}
}

func (s s6) svc(args ...string) {
	s.t.Helper()
	run(s.t, "s6-svc", append(append([]string{"-T", "30000"}, args...), s.dir)...)
}

func (s s6) pid() int {
	s.t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(run(s.t, "s6-svstat", "-o", "pid", s.dir)))
	if err != nil {
		s.t.Fatal(err)
	}
	return max(0, pid) // -1: down
}

func (s s6) signal(sig syscall.Signal) {
	s.t.Helper()
	s.svc(map[syscall.Signal]string{syscall.SIGUSR1: "-1", syscall.SIGTERM: "-t"}[sig])
}

func (s s6) stop() {
	s.t.Helper()
	s.svc("-wD", "-d")
}

// start returns when the server has said that it is ready.
func (s s6) start() {
	s.t.Helper()
	s.svc("-wU", "-u")
}

func (s s6) restart() {
	s.t.Helper()
	s.svc("-wR", "-r")
}
