// Package program builds and runs programs in tests, and finds whatever has
// descended from them.
package program

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Process is a program that was started, with all that descends from it.
type Process struct {
	First *os.Process

	token  string           // in the environment of all of them
	state  *os.ProcessState // of the first, after exited
	exited chan struct{}
	gone   chan struct{}
}

// Start starts cmd by start, which is cmd.Start if it is nil. line is called
// for each line that one of the processes prints, from one goroutine. The
// caller waits for Exited, whatever becomes of the test.
func Start(cmd *exec.Cmd, start func() error, line func(string)) (*Process, error) {
	p := &Process{token: "HANDOVER_TEST_PROGRAM=" + rand.Text(), exited: make(chan struct{}), gone: make(chan struct{})}
	cmd.Env = append(cmd.Environ(), p.token)
	// A pipe of our own: exec's would be read to its end by Wait, which is when
	// the last process has ended and not the first.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	if start == nil {
		start = cmd.Start
	}
	if err := errors.Join(start(), w.Close()); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	p.First = cmd.Process
	go p.read(r, line)
	go func() {
		defer close(p.exited)
		_ = cmd.Wait() // the code says it
		p.state = cmd.ProcessState
	}()
	return p, nil
}

// read ends when no process has the pipe open any more.
func (p *Process) read(r io.ReadCloser, line func(string)) {
	defer close(p.gone)
	defer r.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line(lines.Text())
	}
	_, _ = io.Copy(io.Discard, r) // after a line that is too long: nobody is to block
}

// Exited is closed when the first process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Code is the exit code of the first process, after Exited; -1 stands for a
// signal.
func (p *Process) Code() int { return p.state.ExitCode() }

// End says how the first process has ended, after Exited.
func (p *Process) End() string { return p.state.String() }

// Gone is closed when no process has the output open any more.
func (p *Process) Gone() <-chan struct{} { return p.gone }

// PIDs returns what is alive: whatever has the token in its environment.
// Without /proc it is what is alive of known.
func (p *Process) PIDs(known ...int) []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if p.marked(dir) {
			pid, _ := strconv.Atoi(filepath.Base(dir)) // digits
			pids = append(pids, pid)
		}
	}
	if len(dirs) > 0 {
		return pids
	}
	for _, pid := range known {
		if !slices.Contains(pids, pid) && alive(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Has reports that a process with this pid is alive and one of these. Without
// /proc it is alive, whose it may be.
func (p *Process) Has(pid int) bool {
	if !alive(pid) {
		return false
	}
	if _, err := os.Stat("/proc/self/environ"); err != nil {
		return true
	}
	return p.marked(filepath.Join("/proc", strconv.Itoa(pid)))
}

// marked reports that the process at a directory of /proc has the token. One
// that has ended has no environment any more.
func (p *Process) marked(dir string) bool {
	env, err := os.ReadFile(filepath.Join(dir, "environ"))
	return err == nil && slices.Contains(strings.Split(string(env), "\x00"), p.token)
}

// Executable is the path of what a process executes, or executed before that was
// replaced; empty: not known.
func Executable(pid int) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(path, " (deleted)")
}

// CommandLine is that of a process, for people; empty: not known.
func CommandLine(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " "))
}
