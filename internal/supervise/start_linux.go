package supervise

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// trampolineName is argument 0 of this binary where it is to become the
// command: LISTEN_PID is the pid of whom it is for, which only that knows.
const trampolineName = "upgradectl-supervise-exec"

// Trampoline does not return where Run has started this program only to become
// the command. A program that calls Run calls it first in main.
func Trampoline() {
	if os.Args[0] != trampolineName || len(os.Args) < 3 {
		return
	}
	AdoptListenPID()
	err := syscall.Exec(os.Args[1], os.Args[2:], os.Environ())
	fmt.Fprintf(os.Stderr, "upgradectl: cannot run %s: %v\n", os.Args[1], err)
	os.Exit(startCode(err))
}

// AdoptListenPID takes the descriptors that a supervisor has passed on to its
// child, which calls it before it looks for them.
func AdoptListenPID() {
	if os.Getenv(VariablePID) == strconv.Itoa(os.Getppid()) && os.Getenv("LISTEN_FDS") != "" && os.Getenv("LISTEN_PID") == "" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
}

// startCode is the exit code of a command that could not be started.
func startCode(err error) int {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return codeNotFound
	}
	return codeCannotRun
}

// notPassedDown are the variables of the supervisor's environment that are made
// for it alone.
var notPassedDown = []string{"LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID", "WATCHDOG_PID", "NOTIFY_SOCKET", VariablePID}

// inherited is the environment without what is for this process alone, and without
// the variables of besides, which are to take their place.
func inherited(besides []string) []string {
	drop := slices.Clone(notPassedDown)
	for _, v := range besides { // of two equal names the first one counts
		name, _, _ := strings.Cut(v, "=")
		drop = append(drop, name)
	}
	if w := os.Getenv("WATCHDOG_PID"); w != "" && w != strconv.Itoa(os.Getpid()) {
		drop = append(drop, "WATCHDOG_USEC") // another's
	}
	var env []string
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if !slices.Contains(drop, name) {
			env = append(env, v)
		}
	}
	return env
}

// start starts the command with all that is stored. Descriptors are numbers
// here because Fd of os.File, which os/exec calls, clears O_NONBLOCK of the
// description, and with it the service's.
func (s *supervisor) start() (pid int, err error) {
	path, args := s.Path, s.Command
	if !s.Direct {
		path, args = "/proc/self/exe", append([]string{trampolineName, s.Path}, s.Command...)
	}
	env := slices.Concat(s.env, s.store.environment())
	files := append([]uintptr{0, 1, 2}, s.store.files()...)
	return syscall.ForkExec(path, args, &syscall.ProcAttr{Env: env, Files: files})
}
