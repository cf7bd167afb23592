//go:build linux

package handover_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
)

// TestOperations runs every command of docs/operations.md, in order, in one
// shell, on a demo that stands for the operator's server.
func TestOperations(t *testing.T) {
	s, sh := operated(t)
	steps := stepsOf(t, read(t, "docs/operations.md"))
	held := false
	for _, step := range steps {
		if step.heading == "A drain that does not end" && !held {
			held = true
			hold(t, s.Addr("http-0"))
		}
		out, code := sh.run(t, step.commands)
		if missing := missingLine(out, step.said); missing != "" || code != step.code {
			t.Errorf("line %d: %s: exit code %d, want %d; it does not say %q after what is above that:\n%s",
				step.line, step.commands, code, step.code, missing, out)
		}
	}
	if len(steps) < 10 || !held {
		t.Fatalf("only %d steps found", len(steps))
	}
	s.WaitGone()
}

// TestHotStandby runs every command of docs/operations/standby.md, in order, in
// one shell.
func TestHotStandby(t *testing.T) {
	sh := newShell(t, operatorsDir(t))
	defer sh.run(t, "kill $(jobs -p); wait")    // what a step has left behind
	ln, err := net.Listen("tcp", "127.0.0.1:0") // for a port that is free
	if err != nil {
		t.Fatal(err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	steps := stepsOf(t, strings.ReplaceAll(read(t, "docs/operations/standby.md"), "127.0.0.1:8080", ln.Addr().String()))
	for _, step := range steps {
		out, code := sh.run(t, step.commands)
		if missing := missingLine(out, step.said); missing != "" || code != step.code {
			t.Fatalf("line %d: %s: exit code %d, want %d; it does not say %q after what is above that:\n%s",
				step.line, step.commands, code, step.code, missing, out)
		}
	}
	if len(steps) < 6 {
		t.Fatalf("only %d steps found", len(steps))
	}
}

// step is a block of commands, and what the block below it says they do.
type step struct {
	heading, commands string
	line              int
	said              []string
	code              int
}

// stepsOf fails the test if there is a block whose language says neither.
func stepsOf(t *testing.T, text string) []step {
	t.Helper()
	var steps []step
	var heading, language string
	var block []string
	for i, line := range strings.Split(text, "\n") {
		fence, isFence := strings.CutPrefix(line, "```")
		switch {
		case isFence && language == "":
			language, block = fence, nil
		case isFence && language == "sh":
			language = ""
			steps = append(steps, step{heading: heading, commands: strings.Join(block, "\n"), line: i + 1 - len(block)})
		case isFence && language == "text":
			language = ""
			last := &steps[len(steps)-1]
			last.said, last.code = cutExitCode(t, block)
		case isFence && language == "yaml":
			language = ""
		case isFence:
			t.Fatalf("line %d: a block in %q: want sh, text or yaml", i+1, language)
		case language != "":
			block = append(block, line)
		case strings.HasPrefix(line, "## "):
			heading = line[3:]
		}
	}
	return steps
}

// cutExitCode splits off the last line, if that is one.
func cutExitCode(t *testing.T, lines []string) ([]string, int) {
	t.Helper()
	text, is := strings.CutPrefix(lines[len(lines)-1], "exit code ")
	if !is {
		return lines, 0
	}
	code, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return lines[:len(lines)-1], code
}

// missingLine returns the first of the lines that out does not have, in their
// order; empty: there is none. What is to be there may be a part of its line.
func missingLine(out string, lines []string) string {
	rest := strings.Split(out, "\n")
	for _, line := range lines {
		pattern := regexp.QuoteMeta(strings.Join(strings.Fields(line), " "))
		pattern = strings.NewReplacer(" ", `\s+`, "…", ".*").Replace(pattern)
		is := regexp.MustCompile(pattern)
		for len(rest) > 0 && !is.MatchString(rest[0]) {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			return line
		}
		rest = rest[1:]
	}
	return ""
}

func TestMissingLine(t *testing.T) {
	const out = "0.001 s  prepare    process 12\n  0.100 s  done\n"
	for _, test := range []struct{ lines, want string }{
		{"… s prepare process …|… s done", ""},
		{"done", ""},
		{"… s done|… s prepare process …", "… s prepare process …"},
		{"prepare|prepare", "prepare"},
		{"process 1.", "process 1."},
	} {
		if got := missingLine(out, strings.Split(test.lines, "|")); got != test.want {
			t.Errorf("%s: %q, want %q", test.lines, got, test.want)
		}
	}
}

// operated starts a server in a directory with everything that the operator has
// there, and a shell in that directory.
func operated(t *testing.T) (*proctest.Server, *shell) {
	t.Helper()
	dir := operatorsDir(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	s := proctest.Start(t, in("app"), "-listen", "127.0.0.1:0", "-pidfile", in("app.pid"), "-control", in("control"),
		"-probation", "2s", "-drain-timeout", "5m")
	return s, newShell(t, dir)
}

// operatorsDir has the binaries.
func operatorsDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, built := range map[string]string{
		"app":            proctest.Demo(t, "v1"),
		"app-v2":         proctest.Demo(t, "v2"),
		"app-v3":         proctest.Demo(t, "v3"),
		"app-bad":        proctest.Faulty(t, "fail-before-ready"),
		"app-crash":      proctest.Faulty(t, "crash-after-ready:500ms"),
		"app-hung":       proctest.Faulty(t, "hang-before-ready"),
		"bin/upgradectl": proctest.Upgradectl(t),
		"bin/deploy.sh":  "scripts/deploy.sh",
	} {
		content, err := os.ReadFile(built)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := proctest.WriteBinary(filepath.Join(dir, name), content); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// hold begins a download that outlasts the test, on a connection of its own.
func hold(t *testing.T, address string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, "GET /stream?ms=600000 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, conn) }() // until it is cut
}

// shell is one for all steps: what they set stays.
type shell struct {
	own   string // directory
	in    io.Writer
	codes *bufio.Scanner
}

func newShell(t *testing.T, dir string) *shell {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "sh")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), "UPGRADECTL=", "DEPLOY_TIMEOUT=")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait() // its code is that of the last step
	})
	return &shell{t.TempDir(), in, bufio.NewScanner(out)}
}

// run returns what the commands print, and the exit code of the last one.
func (sh *shell) run(t *testing.T, commands string) (string, int) {
	t.Helper()
	step, out := filepath.Join(sh.own, "step"), filepath.Join(sh.own, "out")
	if err := os.WriteFile(step, []byte(commands+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(sh.in, ". '%s' >'%s' 2>&1 </dev/null; echo $?\n", step, out); err != nil {
		t.Fatal(err)
	}
	ended := sh.codes.Scan()
	said := read(t, out)
	if !ended {
		t.Fatalf("%s: the shell has ended, or it takes too long:\n%s", commands, said)
	}
	code, err := strconv.Atoi(sh.codes.Text())
	if err != nil {
		t.Fatal(err)
	}
	return said, code
}

// TestFieldsOfStatusAreDescribed: those of the golden file, and no others.
func TestFieldsOfStatusAreDescribed(t *testing.T) {
	var status map[string]any
	if err := json.Unmarshal([]byte(read(t, "upgrader/testdata/status.json")), &status); err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	var walk func(prefix string, fields map[string]any)
	walk = func(prefix string, fields map[string]any) {
		for name, value := range fields {
			name = prefix + name
			if list, is := value.([]any); is {
				name += "[]"
				for _, element := range list {
					walk(name+".", element.(map[string]any))
				}
			}
			if object, is := value.(map[string]any); is {
				walk(name+".", object)
			}
			there[name] = true
		}
	}
	walk("", status)
	described := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(section(t, read(t, "docs/operations.md"), "Reading the status"), -1) {
		described[m[1]] = true
		if !there[m[1]] {
			t.Errorf("%s is described, and not in the golden file", m[1])
		}
	}
	for name := range there {
		if !described[name] {
			t.Errorf("%s is not described", name)
		}
	}
}

// states returns the names of all states of a process.
func states(t *testing.T) []string {
	t.Helper()
	_, list, found := strings.Cut(read(t, "upgrader/state.go"), "return [...]string{\n")
	list, _, _ = strings.Cut(list, "}")
	var names []string
	for _, m := range regexp.MustCompile(`"([a-z ]+)"`).FindAllStringSubmatch(list, -1) {
		names = append(names, m[1])
	}
	if !found || len(names) == 0 {
		t.Fatal("no states")
	}
	return names
}

func TestStatesAreDescribed(t *testing.T) {
	text := section(t, read(t, "docs/operations.md"), "Reading the status")
	for _, state := range states(t) {
		if !regexp.MustCompile(`(?m)^\| ([a-z ]+, )*` + state + `(,[a-z ,]+)? \|`).MatchString(text) {
			t.Errorf("the state %q is not described", state)
		}
	}
}

// TestAlertsAreOnMetricsThatExist: an alert on another never fires.
func TestAlertsAreOnMetricsThatExist(t *testing.T) {
	exporter := read(t, "examples/prometheus/main.go")
	values := append(states(t), "upgraded", "failed", "rolled back")
	alerts := 0
	for _, m := range regexp.MustCompile(`(?m)expr: (.*)$`).FindAllStringSubmatch(section(t, read(t, "docs/operations.md"), "Alerts"), -1) {
		alerts++
		for _, metric := range regexp.MustCompile(`handover_(\w+)(?:\{(\w+)=~?"([^"]+)"\})?`).FindAllStringSubmatch(m[1], -1) {
			name, label := metric[1], metric[2]
			_, described, exported := strings.Cut(exporter, `desc("`+name+`"`)
			described, _, _ = strings.Cut(described, "\n")
			if !exported || label != "" && !strings.Contains(described, `"`+label+`"`) {
				t.Errorf("%s: there is no metric %s with %q", m[1], name, label)
			}
			for value := range strings.SplitSeq(metric[3], "|") {
				if label != "" && !slices.Contains(values, value) {
					t.Errorf("%s: %q is never a %s", m[1], value, label)
				}
			}
		}
	}
	if alerts == 0 {
		t.Error("no alerts")
	}
}
