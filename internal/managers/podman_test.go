//go:build linux

package managers

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// engine is podman with everything that it keeps in a directory of the test.
type engine struct{ args []string }

// container is one of contrib/docker/Dockerfile.
type container struct {
	engine
	s     *service
	name  string
	flags string
}

func TestPodman(t *testing.T) {
	t.Parallel()
	installed(t, "podman", "podman", "runc")
	e := newEngine(t)
	live(t, func(t *testing.T, flags string) *service { return e.open(t, flags) }, unnamed)
	t.Run("without a supervisor", func(t *testing.T) {
		t.Parallel()
		refusesToUpgrade(t, e.open(t, "", "--entrypoint", `["/usr/local/bin/app", "-pidfile", "/run/app/app.pid"]`))
	})
}

// newEngine builds the image.
func newEngine(t *testing.T) engine {
	t.Helper()
	dir := t.TempDir()
	e := engine{[]string{
		"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--tmpdir", filepath.Join(dir, "tmp"),
		"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc",
	}}
	h := newHome(t)
	h.podman(e, "build", "--quiet", "--tag", "localhost/app", "--file", h.contrib("docker/Dockerfile"), filepath.Join(h.dir, "bin"))
	return e
}

func (h home) podman(e engine, args ...string) string {
	h.t.Helper()
	return run(h.t, "podman", slices.Concat(e.args, args)...)
}

// open starts a container.
func (e engine) open(t *testing.T, flags string, more ...string) *service {
	t.Helper()
	h := newHome(t)
	s := &service{home: h}
	c := container{engine: e, s: s, name: filepath.Base(filepath.Dir(h.dir)), flags: flags}
	s.manager, s.init = c, c.pid
	options := []string{
		"run", "--name", c.name, "--network", "host",
		// More is not to be had on a machine that is a container itself.
		"--ulimit", "nofile=20000:20000", "--ulimit", "nproc=32768:32768",
		// A deploy into a running container needs a place that both see.
		"--volume", filepath.Join(h.dir, "bin") + ":/usr/local/bin",
		"--volume", filepath.Join(h.dir, "run/app") + ":/run/app",
	}
	s.Server = h.exec(slices.Concat([]string{"podman"}, e.args, options, more, []string{"localhost/app"}, h.flags(flags))...)
	// Before the server's own clean-up, which waits for the log to end.
	t.Cleanup(func() { c.podman("rm", "--force", "--time", "10", c.name) })
	return s
}

func (c container) podman(args ...string) string {
	c.s.t.Helper()
	return c.s.podman(c.engine, args...)
}

func (c container) pid() int {
	c.s.t.Helper()
	said := strings.Fields(c.podman("inspect", "--format", "{{.State.Pid}} {{.RestartCount}}", c.name))
	pid, err := strconv.Atoi(said[0])
	if err != nil || said[1] != "0" {
		c.s.t.Fatalf("podman inspect: pid and restarts %q", said)
	}
	return pid
}

func (c container) signal(sig syscall.Signal) {
	c.s.t.Helper()
	c.podman("kill", "--signal", strconv.Itoa(int(sig)), c.name)
}

// stop asserts that the container ends as its server does.
func (c container) stop() {
	c.s.t.Helper()
	c.podman("stop", "--time", "30", c.name)
	if code := c.s.ExitCode(); code != 0 {
		c.s.t.Errorf("the container exits %d", code)
	}
}

func (c container) start() {
	c.s.t.Helper()
	c.s.Server = c.s.exec(slices.Concat([]string{"podman"}, c.args, []string{"start", "--attach", c.name})...)
}

func (c container) restart() {
	c.s.t.Helper()
	c.stop()
	c.start()
}
