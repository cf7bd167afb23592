// Upgradectl operates a server that replaces itself with package upgrader: it
// shows its generations, upgrades it and waits for the verdict.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-handover/handover/internal/supervise"
)

//go:generate go run . man man

func main() {
	supervise.Trampoline()
	if code, done := keepAlone(os.Args[1:], os.Stderr); done {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	r := newRoot(stdout, stderr)
	r.SetArgs(longFlags(r.Command, args))
	c, err := r.ExecuteContextC(ctx)
	if err == nil && c == r.Command && !r.asked() {
		err = fmt.Errorf("no command: want one of those above")
	}
	if err == nil {
		return exitDone
	}
	fmt.Fprintln(stderr, "upgradectl:", printable(err.Error()))
	if !r.started {
		fmt.Fprintf(stderr, "run %s -h for help\n", c.CommandPath())
		return exitUsage
	}
	return exitCode(err)
}
