//go:build linux

package managers

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// supervisord has contrib/supervisord/app.conf.
type supervisord struct {
	t    *testing.T
	conf string
}

func TestSupervisord(t *testing.T) {
	t.Parallel()
	installed(t, "supervisor", "supervisord", "supervisorctl")
	live(t, func(t *testing.T, flags string) *service { return openSupervisord(newHome(t), flags) }, unnamed)
}

// supervisordConf is what Debian's own file says, in a directory of the test.
const supervisordConf = `
[supervisord]
nodaemon = true
user = root
logfile = /dev/null
logfile_maxbytes = 0
pidfile = DIR/supervisord.pid
[unix_http_server]
file = DIR/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl = unix://DIR/supervisor.sock
[include]
files = DIR/*/app.conf
`

func openSupervisord(h home, flags string) *service {
	h.t.Helper()
	h.contrib("supervisord/app.conf")
	conf := filepath.Join(h.dir, "supervisord.conf")
	if err := os.WriteFile(conf, []byte(strings.ReplaceAll(supervisordConf, "DIR", h.dir)), 0o644); err != nil {
		h.t.Fatal(err)
	}
	s := &service{Server: h.start(nil, flags, "supervisord", "-c", conf), home: h, manager: supervisord{h.t, conf}}
	return s
}

func (s supervisord) ctl(args ...string) string {
	s.t.Helper()
	return run(s.t, "supervisorctl", append([]string{"-c", s.conf}, args...)...)
}

func (s supervisord) pid() int {
	s.t.Helper()
	said, _ := try(s.t, "supervisorctl", "-c", s.conf, "pid", "app") // fails if it is down, and says 0
	pid, err := strconv.Atoi(strings.TrimSpace(said))
	if err != nil {
		s.t.Fatal(err)
	}
	return pid
}

func (s supervisord) signal(sig syscall.Signal) {
	s.t.Helper()
	s.ctl("signal", map[syscall.Signal]string{syscall.SIGUSR1: "USR1", syscall.SIGTERM: "TERM"}[sig], "app")
}

func (s supervisord) stop() {
	s.t.Helper()
	s.ctl("stop", "app")
}

func (s supervisord) start() {
	s.t.Helper()
	s.ctl("start", "app")
}

func (s supervisord) restart() {
	s.t.Helper()
	s.ctl("restart", "app")
}
