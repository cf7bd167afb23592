//go:build linux

package managers

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// daemontools is supervise with contrib/daemontools/run.
type daemontools struct {
	t   *testing.T
	dir string
}

func TestDaemontools(t *testing.T) {
	t.Parallel()
	installed(t, "daemontools", "supervise", "svc", "svstat")
	live(t, func(t *testing.T, flags string) *service { return openDaemontools(newHome(t), flags) }, unnamed)
}

func openDaemontools(h home, flags string) *service {
	h.t.Helper()
	dir := filepath.Dir(h.contrib("daemontools/run"))
	return &service{Server: h.start(nil, flags, "supervise", dir), home: h, manager: daemontools{h.t, dir}}
}

func (d daemontools) pid() (pid int) {
	d.t.Helper()
	said := run(d.t, "svstat", d.dir) // DIR: up (pid N) 5 seconds
	if _, after, found := strings.Cut(said, "up (pid "); found {
		_, _ = fmt.Sscanf(after, "%d", &pid) // 0 is the answer then
	}
	return pid
}

// signal goes to the process that supervise watches: svc has no option for most
// of them.
func (d daemontools) signal(sig syscall.Signal) {
	d.t.Helper()
	if err := syscall.Kill(d.pid(), sig); err != nil {
		d.t.Fatal(err)
	}
}

func (d daemontools) stop() {
	d.t.Helper()
	run(d.t, "svc", "-d", d.dir)
	until(d.t, "svstat says that the service is down", func() bool { return d.pid() == 0 })
}

func (d daemontools) start() {
	d.t.Helper()
	run(d.t, "svc", "-u", d.dir)
}

func (d daemontools) restart() {
	d.t.Helper()
	before := d.pid()
	run(d.t, "svc", "-t", d.dir)
	until(d.t, "svstat shows another process", func() bool { pid := d.pid(); return pid != 0 && pid != before })
}
