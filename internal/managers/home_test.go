//go:build linux

package managers

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
)

// home is what a process manager and its service see of the machine: the files of
// contrib name /usr/local/bin, /run and /var/log, and find there bin, run and log
// of dir.
type home struct {
	t    *testing.T
	dir  string
	addr string // of the server; no other test has it
}

func newHome(t *testing.T) home {
	t.Helper()
	needsRoot(t)
	h := home{t: t, dir: t.TempDir(), addr: ownAddress()}
	for _, name := range []string{"bin", "run", "run/app", "log", "log/app"} {
		if err := os.Mkdir(filepath.Join(h.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.install("upgradectl", proctest.Upgradectl(t))
	h.install("app", demo(t, "v1"))
	return h
}

// ownAddress is one of the 16 million loopback addresses: the port is the one
// that contrib names, and no two tests meet.
func ownAddress() string {
	b := make([]byte, 3)
	_, _ = rand.Read(b) // it does not fail
	return fmt.Sprintf("127.%d.%d.%d:8080", 1+b[0]%250, b[1], 1+b[2]%250)
}

// flags are those of the server, beside its pidfile.
func (h home) flags(more string) []string {
	return append([]string{"-log", "json", "-listen", h.addr, "-drain-timeout", "20s"}, strings.Fields(more)...)
}

// install puts a binary into /usr/local/bin, by rename.
func (h home) install(name, binary string) {
	h.t.Helper()
	content, err := os.ReadFile(binary)
	path := filepath.Join(h.dir, "bin", name)
	if err == nil {
		err = proctest.WriteBinary(path+".next", content)
	}
	if err == nil {
		err = os.Rename(path+".next", path)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// contrib copies a file of contrib into dir, as it is.
func (h home) contrib(name string) (path string) {
	h.t.Helper()
	from := filepath.Join("..", "..", "contrib", name)
	content, err := os.ReadFile(from)
	if err != nil {
		h.t.Fatal(err)
	}
	info, err := os.Stat(from)
	if err != nil {
		h.t.Fatal(err)
	}
	path = filepath.Join(h.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if info.Mode()&0o100 != 0 {
		err = proctest.WriteBinary(path, content)
	} else {
		err = os.WriteFile(path, content, 0o644)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return path
}

// enter is the rest of a command line of unshare: it mounts, and becomes what is
// left of its arguments.
const enter = `mount --bind "$1/bin" /usr/local/bin
mount --bind "$1/run" /run
mount --bind "$1/log" /var/log
export APP_FLAGS="$2"
shift 2
exec "$@"`

// start runs a command in the home: a manager, or what is one. Flags are those
// of unshare, for more namespaces than that of the mounts.
func (h home) start(flags []string, serverFlags string, command ...string) *proctest.Server {
	h.t.Helper()
	args := append([]string{"unshare", "--mount", "--propagation", "private"}, flags...)
	args = append(args, "sh", "-ec", enter, "sh", h.dir, strings.Join(h.flags(serverFlags), " "))
	return h.exec(append(args, command...)...)
}

// exec runs a command where the test runs. proctest takes from the command line
// where the server's pidfile is.
func (h home) exec(command ...string) *proctest.Server {
	h.t.Helper()
	args := []string{"-c", `shift 4; exec "$@"`, "sh", "-listen", h.addr, "-pidfile", h.pidfile()}
	return proctest.Exec(h.t, "sh", append(args, command...)...)
}

// running returns the pids of the processes of the server, in all PID namespaces:
// none but theirs have its address in the command line.
func (h home) running() (pids []int) {
	h.t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, dir := range dirs {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline")) // it may have ended
		args := strings.Split(string(line), "\x00")
		if err == nil && args[0] == "/usr/local/bin/app" && slices.Contains(args, h.addr) {
			pid, _ := strconv.Atoi(filepath.Base(dir)) // digits
			pids = append(pids, pid)
		}
	}
	return pids
}

func (h home) pidfile() string { return filepath.Join(h.dir, "run", "app", "app.pid") }

// run runs a command to its end and returns what it has printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func try(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience) // clean-up, too
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// hostPID is the pid, as the test sees it, of the process that is pid in the
// innermost PID namespace of init.
func hostPID(t *testing.T, init, pid int) int {
	t.Helper()
	space := func(p string) string {
		name, _ := os.Readlink(filepath.Join("/proc", p, "ns", "pid")) // it may have ended
		return name
	}
	want := space(strconv.Itoa(init))
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		status, err := os.ReadFile(filepath.Join(dir, "status"))
		if err != nil || space(filepath.Base(dir)) != want {
			continue
		}
		_, line, _ := bytes.Cut(status, []byte("\nNSpid:"))
		line, _, _ = bytes.Cut(line, []byte("\n"))
		if pids := strings.Fields(string(line)); len(pids) > 1 && pids[len(pids)-1] == strconv.Itoa(pid) {
			host, _ := strconv.Atoi(pids[0]) // the kernel wrote it
			return host
		}
	}
	t.Fatalf("no process is %d in the PID namespace of %d", pid, init)
	return 0
}

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		missing(t, "mount namespaces need root")
	}
}

// patience is the limit of everything that is waited for.
const patience = 30 * time.Second

// What goes into an image that has no C library must do without one.
func init() { os.Setenv("CGO_ENABLED", "0") }

func demo(t *testing.T, version string) string {
	t.Helper()
	return proctest.Demo(t, version)
}

// installed skips the test if one of the programs is missing.
func installed(t *testing.T, pkg string, programs ...string) {
	t.Helper()
	needsRoot(t)
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing(t, p+" is not installed: the Debian package "+pkg)
		}
	}
}

// missing skips the test. Where scripts/setup.sh has installed everything nothing
// may be missing: HANDOVER_NOSKIP makes it a failure.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("HANDOVER_NOSKIP") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// until polls: these managers tell nobody of a change.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for limit := time.Now().Add(patience); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}
