//go:build unix

package program

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// run runs a shell script to its end, and returns what was printed.
func run(t *testing.T, script string) (p *Process, lines []string) {
	t.Helper()
	p, err := Start(exec.CommandContext(t.Context(), "sh", "-c", script), nil, func(line string) { lines = append(lines, line) })
	if err != nil {
		t.Fatal(err)
	}
	<-p.Exited()
	<-p.Gone()
	return p, lines
}

func TestBothStreamsAreRead(t *testing.T) {
	p, lines := run(t, "echo one; echo two >&2; exit 7")
	if !slices.Equal(lines, []string{"one", "two"}) {
		t.Errorf("lines %q", lines)
	}
	if p.Code() != 7 || p.End() != "exit status 7" || p.Has(p.First.Pid) {
		t.Errorf("code %d, %q", p.Code(), p.End())
	}
}

// It would block for ever if nobody read on.
func TestLineThatIsTooLongBlocksNobody(t *testing.T) {
	p, lines := run(t, "echo one; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo two")
	if !slices.Equal(lines, []string{"one"}) || p.Code() != 0 {
		t.Errorf("%d lines, exit code %d", len(lines), p.Code())
	}
}

func TestWhatDescendsIsFound(t *testing.T) {
	if _, err := os.Stat("/proc/self/environ"); err != nil {
		t.Skip("only /proc tells:", err)
	}
	path, err := exec.LookPath("sleep")
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		t.Skip(err)
	}
	// The shell ends, and its child, once it is no shell any more, goes on without
	// the output.
	p, lines := run(t, `sleep 60 >/dev/null 2>&1 &
		while [ "$(cat /proc/$!/comm)" != sleep ]; do :; done
		echo $!`)
	pid, err := strconv.Atoi(strings.Join(lines, ""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := Signal(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	}()
	if pids := p.PIDs(); !slices.Equal(pids, []int{pid}) || !p.Has(pid) || p.Has(os.Getpid()) {
		t.Errorf("found %d, want %d", pids, pid)
	}
	if got := Executable(pid); got != path {
		t.Errorf("it executes %q, want %q", got, path)
	}
	if got := CommandLine(pid); got != "sleep 60" {
		t.Errorf("command line %q", got)
	}
}

func TestReplaceIsByRename(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "app"), filepath.Join(dir, "other")
	for file, text := range map[string]string{path: "one", other: "two"} {
		if err := Write(file, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, other); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(path)
	text, err2 := os.ReadFile(path)
	if err != nil || err2 != nil || string(text) != "two" || os.SameFile(before, after) || after.Mode().Perm()&0o100 == 0 {
		t.Errorf("%q, mode %v, the same file: %t; %v, %v", text, after.Mode(), os.SameFile(before, after), err, err2)
	}
	if err := Replace(path, filepath.Join(dir, "missing")); err == nil {
		t.Error("a missing file has replaced it")
	}
}
