package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/client"
	"github.com/go-handover/handover/internal/fd"
)

// serverOf returns the pid of the server, if there is one. A file that nobody has
// locked is stale, whatever it says: the pid may be a stranger's by now.
func serverOf(f client.PIDFile) (int, error) {
	pid, err := client.Named(f.Path)
	if err != nil {
		return 0, noServer(err)
	}
	file, err := os.Open(f.Path)
	if err != nil {
		return 0, noServer(err)
	}
	defer file.Close()
	locked, err := fd.Locked(file)
	if err != nil {
		return 0, noServer(err)
	}
	if !locked {
		return 0, exit(exitUnreachable, "no server: %s is stale: process %d does not hold it", f.Path, pid)
	}
	return pid, nil
}

func noServer(err error) error {
	hint := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = ": is a server running, with Options.PIDFile set to this path?"
	case errors.Is(err, fs.ErrPermission):
		hint = ": be the user that the server runs as, or root"
	}
	return exit(exitUnreachable, "no server: %w%s", err, hint)
}

// signalServer sends sig to the process that the pidfile names.
func signalServer(pid int, sig os.Signal) error {
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Signal(sig)
	}
	if err != nil {
		return noServer(fmt.Errorf("process %d cannot be signalled: %w", pid, err))
	}
	return nil
}

// stopBySignal is stopBySocket without one.
func (ps *processes) stopBySignal(path string) error {
	f := client.PIDFileAt(path)
	pid, err := serverOf(f)
	if err != nil {
		return err
	}
	if err := ps.add(pid); err != nil {
		return err
	}
	for _, path := range []string{f.Next, f.Prev} {
		other, err := client.Named(path)
		if err != nil {
			continue // no upgrade is under way
		}
		if err := ps.add(other); err != nil {
			return err
		}
	}
	return signalServer(pid, syscall.SIGTERM)
}

// pidfileLook is between two looks at the pidfile.
const pidfileLook = 20 * time.Millisecond

// upgradeBySignal upgrades a server that has no control socket. A signal has no
// answer: an upgrade that somebody else has begun at the same instant is taken
// for the one that was asked for.
func upgradeBySignal(ctx context.Context, path string, con *console, noWait bool) error {
	f := client.PIDFileAt(path)
	pid, err := serverOf(f)
	if err != nil {
		return err
	}
	seen, err := f.Witness()
	if errors.Is(err, client.ErrBusy) {
		return exit(exitBusy, "busy: an upgrade of process %d is under way", pid)
	}
	if err != nil {
		return noServer(err)
	}
	old, err := openProcess(pid)
	if err != nil {
		return noServer(fmt.Errorf("process %d: %w", pid, err))
	}
	defer old.close()
	w := &witness{Witness: seen, console: con, begun: time.Now(), pid: pid, old: old}
	if err := signalServer(pid, upgradeSignal); err != nil {
		return err
	}
	if noWait {
		con.line("begun: process %d was signalled", pid)
		return nil
	}
	return w.watch(ctx)
}

// witness tells what is seen of an upgrade.
type witness struct {
	*client.Witness
	console   *console
	begun     time.Time
	pid       int
	old       *process
	committed bool
}

func (w *witness) watch(ctx context.Context) error {
	w.say("prepare", "process %d prepares", w.pid)
	defer w.console.progress()()
	for {
		over, err := w.verdict()
		if over || err != nil {
			return err
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return exit(exitFailed, "no verdict in time (-timeout); the upgrade may go on: %s names it", w.Path)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		pause(ctx, pidfileLook)
	}
}

func (w *witness) say(name, format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	w.console.line("%s  %-9s  %s", seconds(time.Since(w.begun)), name, what)
	w.console.await("%s: %s", name, what)
}

func (w *witness) verdict() (over bool, err error) {
	gone := w.gone() // asked first: what ends after this is seen the next time
	switch sight, pid := w.Look(alive); {
	case sight == client.RolledBack:
		return true, exit(exitRolledBack, "rolled back: process %d serves again; the server's log has the reason", w.pid)
	case sight == client.Failed:
		return true, exit(exitFailed, "failed: process %d serves on; the server's log has the reason", w.pid)
	case sight == client.Upgraded:
		w.say("done", "process %d has replaced process %d", pid, w.pid)
		return true, nil
	case sight == client.Committed && !w.committed:
		w.committed = true
		w.say("probation", "process %d serves; process %d can take the service back", pid, w.pid)
	}
	if gone {
		return true, exit(exitUnreachable, "no server: process %d has ended without a successor", w.pid)
	}
	return false, nil
}

// gone reports that there is no server, and nobody who is about to be one.
func (w *witness) gone() bool {
	return w.old.ended() && !aliveAt(w.Path) && !client.Exists(w.Next)
}

// aliveAt reports that the process that the file at path names is there.
func aliveAt(path string) bool {
	pid, err := client.Named(path)
	return err == nil && alive(pid)
}

func alive(pid int) bool {
	p, err := openProcess(pid)
	if err != nil {
		return false
	}
	p.close()
	return true
}
