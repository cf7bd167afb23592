package supervise

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/fd"
)

// supervisor has one owner, the goroutine of Run.
type supervisor struct {
	Config
	env    []string
	notify *fd.NotifySocket
	up     *net.UnixConn // nil: nobody wants to know
	store  store
	delays backoff

	main       int       // 0: none runs
	since      time.Time // main is it
	code       int       // of the last main process
	stopping   syscall.Signal
	ending     bool // there is no main process, and there will be none
	told       bool // what is left was told to end
	killing    bool
	deserted   bool // main has named a successor that is gone
	deliberate bool // main has said that it stops
	claimant   int  // says that it is the main process, while there was another; 0: none

	restart <-chan time.Time // nil unless a restart is due
	kill    <-chan time.Time // nil unless descendants have been told to end
}

// Run runs the command until it and all its descendants have ended, and returns
// the exit code of its last main process, 128 and the number if a signal ended
// that. An error is that it could not be started at all; the code is 127 then if it
// was not found, else 126.
//
// It takes over the signals and the children of the process: call it once, in a
// program that does nothing else.
func Run(c Config) (code int, err error) {
	s := &supervisor{Config: c}
	if s.Log == nil {
		s.Log = os.Stderr
	}
	if s.Name == "" {
		s.Name = DefaultName
	}
	if s.KillAfter == 0 {
		s.KillAfter = DefaultKillAfter
	}
	// Before the first child, so that no SIGCHLD is lost.
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, append([]os.Signal{syscall.SIGCHLD}, forwarded()...)...)
	defer signal.Stop(signals)
	// Else Go ends this process when nobody reads its log any more.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	if err := s.prepare(); err != nil {
		return startCode(err), err
	}
	defer s.close()
	if s.main, err = s.start(); err != nil {
		return startCode(err), fmt.Errorf("cannot run %s: %w", s.Path, err)
	}
	s.since = time.Now()
	// This process does little from now on, for long.
	debug.FreeOSMemory()
	if err := fd.ForgetImage(); err != nil {
		s.logf("the memory of the start is kept: %v", err)
	}
	return s.loop(signals)
}

// forwarded are the signals that are for the main process. Not among them are
// those of the kernel to one process (SIGPIPE, SIGSEGV), of a terminal's job
// control, and SIGURG, by which Go's runtime interrupts itself.
func forwarded() []os.Signal {
	all := []os.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2,
		syscall.SIGWINCH, syscall.SIGCONT, syscall.SIGALRM, syscall.SIGVTALRM, syscall.SIGIO, syscall.SIGPWR,
	}
	for n := syscall.Signal(35); n <= 64; n++ { // the real-time signals that no C library keeps for itself
		all = append(all, n)
	}
	return all
}

func (s *supervisor) prepare() (err error) {
	if len(s.Command) == 0 {
		return errors.New("no command")
	}
	if s.Path, err = s.program(); err != nil {
		return err
	}
	if err := s.store.inherit(); err != nil {
		return err
	}
	if s.ReadyFD != 0 {
		if s.ReadyFD < firstFD+len(s.store.all) {
			return fmt.Errorf("-ready-fd %d: want %d or more", s.ReadyFD, firstFD+len(s.store.all))
		}
		if err := fd.SetCloseOnExec(s.ReadyFD); err != nil {
			return fmt.Errorf("-ready-fd %d: %w", s.ReadyFD, err)
		}
	}
	if err := fd.BecomeSubreaper(); err != nil {
		return err
	}
	if s.notify, err = fd.ListenNotify(); err != nil {
		return err
	}
	if s.up, err = dialUp(); err != nil {
		s.logf("NOTIFY_SOCKET: %v", err) // the service can do without
	}
	s.env = append(slices.Concat(inherited(s.Env), s.Env), "NOTIFY_SOCKET="+s.notify.Name(), VariablePID+"="+strconv.Itoa(os.Getpid()))
	return nil
}

func (s *supervisor) program() (string, error) {
	if s.Path != "" {
		return s.Path, nil
	}
	return exec.LookPath(s.Command[0])
}

func (s *supervisor) close() {
	_ = s.notify.Close()
	s.store.close()
	if s.up != nil {
		_ = s.up.Close()
	}
}

func (s *supervisor) logf(format string, args ...any) {
	fmt.Fprintf(s.Log, s.Name+": "+format+"\n", args...)
}

// loop returns when no child is left. Whatever has happened, what the
// processes have said is read first, because it was said before: a signal goes
// to the main process of now, and the end of a process that has named its
// successor is not the end of the service.
func (s *supervisor) loop(signals <-chan os.Signal) (int, error) {
	readable := make(chan struct{})
	over := make(chan struct{})
	defer close(over)
	go s.listen(readable, over)
	for {
		var got os.Signal
		due, overdue := false, false
		select {
		case got = <-signals:
		case <-readable:
		case <-s.restart:
			due = true
		case <-s.kill:
			overdue = true
		}
		if err := s.drain(); err != nil {
			return s.code, err
		}
		if sig, ok := got.(syscall.Signal); ok && sig != syscall.SIGCHLD {
			s.forward(sig)
		}
		if overdue {
			s.overdue()
		}
		if due && s.restart != nil { // no stop has come in between
			s.startAgain()
		}
		left, err := s.reap()
		if s.gone() {
			s.ended(codeLost, "its parent has its exit code")
		}
		if err != nil || s.ending && !left {
			return s.code, err
		}
		if s.killing {
			s.signalRest(syscall.SIGKILL) // again: one may have begun since
		}
	}
}

// listen tells the loop that there is something to read, and ends with the
// socket or the loop.
func (s *supervisor) listen(readable chan<- struct{}, over <-chan struct{}) {
	for s.notify.Wait() == nil {
		select {
		case readable <- struct{}{}:
		case <-over:
			return
		}
	}
}

// reap takes the processes that have ended, and says whether there are others. A
// process is seen to have ended, then what it said is read, then it is
// reaped: until then its pid, by which it is known, is nobody else's.
func (s *supervisor) reap() (left bool, err error) {
	for {
		pid, err := fd.Zombie()
		switch {
		case errors.Is(err, syscall.ECHILD):
			return false, nil
		case err != nil:
			return true, err
		case pid == 0:
			return true, nil
		}
		if err := s.drain(); err != nil {
			return true, err
		}
		status, err := fd.Reap(pid)
		if err != nil {
			return true, err
		}
		if pid == s.main {
			s.ended(codeOf(status))
		}
	}
}

// codeOf returns the exit code, and the words for how a process has ended.
func codeOf(status syscall.WaitStatus) (code int, how string) {
	if status.Signaled() {
		return 128 + int(status.Signal()), status.Signal().String()
	}
	return status.ExitStatus(), fmt.Sprintf("exit code %d", status.ExitStatus())
}

// gone says whether the main process has been reaped by another: it may be a
// grandchild, until its parent ends.
func (s *supervisor) gone() bool {
	return s.main != 0 && errors.Is(syscall.Kill(s.main, 0), syscall.ESRCH)
}

func (s *supervisor) setMain(pid int) {
	s.main, s.since, s.deserted, s.deliberate = pid, time.Now(), false, false
	s.claimant = 0 // its pid may be another process's by the time of the next death
}

// ended is called when the main process has.
func (s *supervisor) ended(code int, how string) {
	if s.deserted && code == 0 {
		code, how = codeLost, "its successor is gone"
	}
	how = fmt.Sprintf("main process %d has ended: %s", s.main, how)
	s.main, s.code = 0, code
	if s.inherit() {
		return
	}
	if s.stopping != 0 || !s.Restart.after(code, s.deliberate) {
		s.logf("%s", how)
		s.end()
		return
	}
	s.restartIn(s.delays.after(time.Since(s.since)), how)
}

func (s *supervisor) restartIn(d time.Duration, why string) {
	s.logf("%s; restart in %v with %d stored descriptors", why, d, len(s.store.all))
	s.restart = time.After(d)
}

func (s *supervisor) startAgain() {
	s.restart = nil
	pid, err := s.start()
	if err != nil {
		s.code = startCode(err)
		s.restartIn(s.delays.after(0), fmt.Sprintf("cannot run %s: %v", s.Path, err))
		return
	}
	s.setMain(pid)
	s.logf("restarted: main process is %d", pid)
}

// end waits for what is left: generations that drain, or a process that was on
// probation when the service stopped, and has heard of that from the main one. A
// SIGTERM would tell them to hurry.
func (s *supervisor) end() {
	s.ending, s.restart = true, nil
	s.kill = time.After(s.KillAfter)
}

// overdue tells what is left to end, and ends it the next time.
func (s *supervisor) overdue() {
	if s.told {
		s.kill, s.killing = nil, true
		s.logf("killed what was left: %v", descendants())
		return
	}
	s.told = true
	s.logf("told what is left after %v to end: %v", s.KillAfter, s.signalRest(syscall.SIGTERM))
	s.kill = time.After(min(s.KillAfter, hurry))
}

func (s *supervisor) signalRest(sig syscall.Signal) []int {
	rest := descendants()
	for _, pid := range rest {
		_ = syscall.Kill(pid, sig) // it may have ended
	}
	return rest
}

// forward passes a signal on to the main process.
func (s *supervisor) forward(sig syscall.Signal) {
	if sig == syscall.SIGTERM || sig == syscall.SIGINT || sig == syscall.SIGQUIT {
		s.stopping = sig
	}
	switch {
	case s.main != 0:
		s.signal(sig)
	case s.ending: // asked for twice
		s.signalRest(sig)
	case s.stopping != 0: // between two main processes
		s.end()
	}
}

func (s *supervisor) signal(sig syscall.Signal) {
	if err := syscall.Kill(s.main, sig); err != nil {
		s.logf("main process %d: signal %v: %v", s.main, sig, err)
	}
}
