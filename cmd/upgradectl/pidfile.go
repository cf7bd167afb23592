package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/fd"
)

// pidfile is the server's, with the two names beside it that exist while an
// upgrade is under way (docs/adr/0003).
type pidfile struct {
	path string
	next string // of the process that is to be committed
	prev string // of the one that can take the service back
}

func pidfileAt(path string) pidfile {
	dir, base := filepath.Split(path)
	return pidfile{path, filepath.Join(dir, "."+base+".next"), filepath.Join(dir, "."+base+".prev")}
}

// named returns the pid in the file at path.
func named(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("%s: %.32q is not a pid", path, text)
	}
	return pid, nil
}

// server returns the pid of the server, if there is one. A file that nobody has
// locked is stale, whatever it says: the pid may be a stranger's by now.
func (f pidfile) server() (int, error) {
	pid, err := named(f.path)
	if err != nil {
		return 0, noServer(err)
	}
	file, err := os.Open(f.path)
	if err != nil {
		return 0, noServer(err)
	}
	defer file.Close()
	locked, err := fd.Locked(file)
	if err != nil {
		return 0, noServer(err)
	}
	if !locked {
		return 0, exit(exitUnreachable, "no server: %s is stale: process %d does not hold it", f.path, pid)
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
	f := pidfileAt(path)
	pid, err := f.server()
	if err != nil {
		return err
	}
	if err := ps.add(pid); err != nil {
		return err
	}
	for _, path := range []string{f.next, f.prev} {
		other, err := named(path)
		if err != nil {
			continue // no upgrade is under way
		}
		if err := ps.add(other); err != nil {
			return err
		}
	}
	return signalServer(pid, syscall.SIGTERM)
}

// look is what the pidfile says at one moment.
type look struct {
	file      os.FileInfo // nil: it is not there
	wayBack   bool        // the old process can take the service back
	preparing bool        // somebody is to be committed
}

// look looks at the file first. At a commit the way back is there before the new
// file is, so who sees the new file and then no way back sees the end.
func (f pidfile) look() look {
	var l look
	if fi, err := os.Stat(f.path); err == nil {
		l.file = fi
	}
	l.wayBack, l.preparing = exists(f.prev), exists(f.next)
	return l
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// pidfileLook is between two looks at the pidfile.
const pidfileLook = 20 * time.Millisecond

// upgradeBySignal upgrades a server that has no control socket. A signal has no
// answer: an upgrade that somebody else has begun at the same instant is taken
// for the one that was asked for.
func upgradeBySignal(ctx context.Context, path string, con *console, noWait bool) error {
	f := pidfileAt(path)
	pid, err := f.server()
	if err != nil {
		return err
	}
	before := f.look()
	if before.wayBack || before.preparing {
		return exit(exitBusy, "busy: an upgrade of process %d is under way", pid)
	}
	if before.file == nil {
		return noServer(fmt.Errorf("%s: %w", path, fs.ErrNotExist))
	}
	old, err := openProcess(pid)
	if err != nil {
		return noServer(fmt.Errorf("process %d: %w", pid, err))
	}
	defer old.close()
	w := &witness{pidfile: f, console: con, begun: time.Now(), before: before.file, pid: pid, old: old}
	if err := signalServer(pid, upgradeSignal); err != nil {
		return err
	}
	if noWait {
		con.line("begun: process %d was signalled", pid)
		return nil
	}
	return w.watch(ctx)
}

// witness sees an upgrade from outside. The inode of the pidfile changes when
// the new process is committed, and comes back when it is rolled back, which is
// possible as long as the name for it is there. An attempt that has ended
// without a new process gives the old file a new time. One that is rolled back
// between two looks is taken for one that has failed: the old process serves
// after either.
type witness struct {
	pidfile
	console   *console
	begun     time.Time
	before    os.FileInfo
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
			return exit(exitFailed, "no verdict in time (-timeout); the upgrade may go on: %s names it", w.path)
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

// verdict looks once, or twice at what must have been so all the time: the
// processes do not wait between two looks.
func (w *witness) verdict() (over bool, err error) {
	gone := w.gone() // asked first: what ends after this is seen the next time
	l := w.look()
	switch {
	case l.file == nil:
	case os.SameFile(l.file, w.before):
		if l.file.ModTime().Equal(w.before.ModTime()) || !w.still(l) {
			break
		}
		if w.committed {
			return true, exit(exitRolledBack, "rolled back: process %d serves again; the server's log has the reason", w.pid)
		}
		return true, exit(exitFailed, "failed: process %d serves on; the server's log has the reason", w.pid)
	case !l.wayBack && w.still(l) && alive(w.path):
		pid, err := named(w.path)
		if err != nil {
			break // another look
		}
		w.say("done", "process %d has replaced process %d", pid, w.pid)
		return true, nil
	case !w.committed:
		w.committed = true
		if pid, err := named(w.path); err == nil {
			w.say("probation", "process %d serves; process %d can take the service back", pid, w.pid)
		}
	}
	if gone {
		return true, exit(exitUnreachable, "no server: process %d has ended without a successor", w.pid)
	}
	return false, nil
}

// still reports that the pidfile is the one that l saw.
func (w *witness) still(l look) bool {
	now := w.look()
	return now.file != nil && os.SameFile(now.file, l.file)
}

// gone reports that there is no server, and nobody who is about to be one.
func (w *witness) gone() bool {
	return w.old.ended() && !alive(w.path) && !exists(w.next)
}

// alive reports that the process that the file at path names is there.
func alive(path string) bool {
	pid, err := named(path)
	if err != nil {
		return false
	}
	p, err := openProcess(pid)
	if err != nil {
		return false
	}
	p.close()
	return true
}
