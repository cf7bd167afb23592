package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/go-handover/handover/internal/client"
	"github.com/go-handover/handover/internal/wire"
)

// The exit codes, which scripts rely on.
const (
	exitDone        = 0
	exitFailed      = 1
	exitBusy        = 2
	exitRolledBack  = 3
	exitUnreachable = 4
	exitUsage       = 5
)

const exitCodes = `    0  done
    1  failed: the old process serves on; or there was no verdict in time
    2  busy: an upgrade is under way, or none is that could be ended
    3  rolled back: the new process served, and the old one serves again
    4  not reachable: no server answers, or it refuses this user, or it has
       ended without a verdict
    5  wrong usage`

// coded is an error with an exit code of its own.
type coded struct {
	code int
	err  error
}

func (e *coded) Error() string { return e.err.Error() }
func (e *coded) Unwrap() error { return e.err }

// ExitCode makes main exit with it.
func (e *coded) ExitCode() int { return e.code }

func exit(code int, format string, args ...any) error {
	return &coded{code, fmt.Errorf(format, args...)}
}

// exitCode is that of err, if it says one, whatever command it comes from.
func exitCode(err error) int {
	switch e := interface{ ExitCode() int }(nil); {
	case err == nil:
		return exitDone
	case errors.As(err, &e):
		return e.ExitCode()
	case errors.As(err, new(*client.Error)):
		return exitUnreachable
	}
	return exitFailed
}

var codeOfResult = map[string]int{
	wire.ResultDone:       exitDone,
	wire.ResultFailed:     exitFailed,
	wire.ResultBusy:       exitBusy,
	wire.ResultRolledBack: exitRolledBack,
	wire.ResultGone:       exitUnreachable,
	wire.ResultRefused:    exitUnreachable,
}

// resultCode is the exit code of an answer.
func resultCode(result string) int {
	if code, known := codeOfResult[result]; known {
		return code
	}
	return exitFailed
}

// interrupted says what an interruption does not end.
func interrupted(err error, goesOn string) error {
	if errors.Is(err, context.Canceled) {
		return exit(exitFailed, "interrupted: %s", goesOn)
	}
	return err
}
