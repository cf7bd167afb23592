package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
)

// buildProgram builds what is in dir, without the race detector.
func buildProgram(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// idleMemory returns the memory of a program once it waits for ever, in KiB:
// what is its alone (RssAnon), and with the pages of files that the kernel has
// mapped for it and can drop at any time, around those that were used (VmRSS). It,
// or what it runs, has said that on its standard error, once and again after wake.
func idleMemory(t *testing.T, wake syscall.Signal, path string, args ...string) (own, all int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), path, args...)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	said := bufio.NewScanner(out)
	if !said.Scan() {
		t.Fatalf("%s has ended", path)
	}
	if wake != 0 {
		if err := cmd.Process.Signal(wake); err != nil || !said.Scan() {
			t.Fatalf("%s: %v, after %q", path, err, said.Text())
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	kib := func(name string) int {
		found := regexp.MustCompile(name + `:\s*(\d+) kB`).FindSubmatch(status)
		if found == nil {
			t.Fatalf("no %s in %s", name, status)
		}
		n, err := strconv.Atoi(string(found[1]))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return kib("RssAnon"), kib("VmRSS")
}

const emptyProgram = `package main

import "time"

func main() {
	println("ready")
	time.Sleep(time.Hour)
}
`

// woken has got the signal from a supervisor that has begun to wait.
const woken = `trap 'echo woken >&2' USR1; echo ready >&2; while :; do sleep 1 & wait $!; done`

// TestSuperviseIsSmall, beyond what Go's runtime takes.
func TestSuperviseIsSmall(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"main.go": emptyProgram, "go.mod": "module empty\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	empty := buildProgram(t, dir)
	const limit = 4 << 10
	base, baseAll := idleMemory(t, 0, empty)
	ours, oursAll := idleMemory(t, syscall.SIGUSR1, buildProgram(t, "."), "supervise", "--", "sh", "-c", woken)
	t.Logf("%d KiB of its own, %d in all; an empty program has %d and %d", ours, oursAll, base, baseAll)
	if ours-base >= limit {
		t.Errorf("%d KiB more than an empty program, want less than %d", ours-base, limit)
	}
}

// stays runs the demo under one of the commands that stay.
func stays(t *testing.T, name string, flags []string, demo ...string) command {
	t.Helper()
	args := append([]string{name}, flags...)
	args = append(args, "--", proctest.Demo(t, "v1"))
	cmd := command{exec.Command(os.Args[0], append(args, demo...)...), newOutput(), newOutput()}
	cmd.Env = append(cmd.Environ(), asUpgradectl+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Stdout, cmd.Stderr = cmd.out, cmd.errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	hung := time.AfterFunc(2*patience, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()
		hung.Stop()
		if t.Failed() {
			t.Logf("it has said\n%s%s", cmd.out, cmd.errs)
		}
	})
	return cmd
}

// supervised is upgradectl supervise.
func supervised(t *testing.T, flags ...string) (cmd command, pidfile, address string) {
	t.Helper()
	pidfile = filepath.Join(t.TempDir(), "pid")
	address = freeAddress(t)
	return stays(t, "supervise", flags, "-listen", address, "-pidfile", pidfile, "-probation", "50ms"), pidfile, address
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// TestSuperviseFollowsUpgradesAndCrashes: three upgrades by a signal to the
// supervisor, a crash after which no connection is refused, a stop.
func TestSuperviseFollowsUpgradesAndCrashes(t *testing.T) {
	c, pidfile, address := supervised(t, "-restart", "on-failure")
	serving := regexp.MustCompile(`state changed from=starting generation=1 pid=\d+ to=serving`)
	c.waitFor(t, serving, 1)
	changed := regexp.MustCompile(`main process is \d+, was \d+`)
	for i := range 3 {
		if err := c.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		c.waitFor(t, changed, i+1)
		c.waitFor(t, regexp.MustCompile(`from="on probation" generation=`+strconv.Itoa(i+2)+` pid=\d+ to=serving`), 1)
	}
	text, err := os.ReadFile(pidfile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", address) // perhaps nobody is there to accept it
	if err != nil {
		t.Fatalf("while nothing runs: %v", err)
	}
	defer conn.Close()
	c.waitFor(t, serving, 2)
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("stopped: %v", err)
	}
}

// waitFor waits until the command has said it so often, and returns the last one
// with its groups.
func (c command) waitFor(t *testing.T, what *regexp.Regexp, times int) []string {
	t.Helper()
	limit := time.After(patience)
	for {
		said := c.out.String() + c.errs.String()
		if found := what.FindAllStringSubmatch(said, times); len(found) == times {
			return found[times-1]
		}
		select {
		case <-c.out.more:
		case <-c.errs.more:
		case <-limit:
			t.Fatalf("not said %d times: %s", times, what)
		}
	}
}

func TestWrongUsageOfWhatStays(t *testing.T) {
	for _, k := range keepings {
		for _, args := range [][]string{
			{k.name},
			{k.name, "--"},
			{k.name, "-restart", "sometimes", "--", "true"},
			{k.name, "-kill-after", "0s", "--", "true"},
			{k.name, "-ready-fd", "1", "--", "true"},
			{"-socket", "x", k.name, "--", "true"},
		} {
			if _, done := keepAlone(args, os.Stderr); done {
				t.Errorf("%q runs", args)
			}
			runIn(t, args...).want(t, exitUsage, k.name)
		}
	}
}
