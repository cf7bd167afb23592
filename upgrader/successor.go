package upgrader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// successor is what the predecessor knows of the process that is to replace it.
type successor struct {
	*peer
	exited chan struct{}    // closed once it is dead and reaped
	state  *os.ProcessState // set before exited is closed; nil if it is not our child
	id     uint64           // inode of its pidfd; 0: not known
	pidfd  *os.File         // nil: this system has none; closed with exited
	child  bool             // as opposed to a sibling
	left   atomic.Bool      // it is not reaped when it has ended: see leave
	reap   func()           // that; sets state
	signal func(os.Signal) error
	given  []wire.Socket
	build  string // as it said hello

	settled func() // it has heard that it was confirmed, or has ended; nil: nobody waits for that

	stranger *stranger // nil: this process has started it
	waits    bool      // it was ready, and waits for its commit
	wants    bool      // but first for what has changed in the states
}

// dead reports that the successor has ended, whatever it said before.
func (s *successor) dead() bool {
	select {
	case <-s.exited:
		return true
	default:
		return false
	}
}

// hasEnded is dead by the kernel's word: exited is closed a little later.
func (s *successor) hasEnded() bool {
	return s.dead() || s.pidfd != nil && fd.HasEnded(s.pid, s.pidfd)
}

// leave makes this process one that does not reap it. A service manager that takes a
// stranger's child for the main process hears nothing of its death; but it reaps
// what is left when this process ends, and then it does.
func (s *successor) leave() { s.left.Store(s.child && s.pidfd != nil) }

// take undoes leave for one that has ended.
func (s *successor) take() {
	if !s.left.Load() {
		return
	}
	<-s.exited
	if s.state == nil {
		s.reap()
	}
}

func (s *successor) hasSettled() {
	if s.settled != nil {
		s.settled()
	}
}

// managed reports that the successor has a service manager of its own.
func (s *successor) managed() bool { return s.stranger != nil && s.stranger.hello.Managed }

// hit reports that the successor, which is dead, was ended by one of these
// signals. That of a sibling nobody here can know: only one without a trace of
// its end can be.
func (s *successor) hit(triggers *[]os.Signal) bool {
	if triggers == nil || !s.dead() {
		return false // nothing triggers, or it was not the signal that ended it
	}
	if s.state == nil {
		return !s.child
	}
	sig, found := endedBy(s.state)
	return found && slices.Contains(*triggers, sig)
}

// reaped waits until the kernel has ended a successor that was killed.
func (s *successor) reaped() {
	s.ignore()
	select {
	case <-s.exited:
	case <-time.After(killTimeout): // it hangs in the kernel: nothing can be done
	}
	_ = s.Close()
}

// outlive watches a successor that was rolled back while it was alive. It has
// clients, so it may drain for limit like any other generation, and a little
// longer; but one that does not even acknowledge the abort hangs, and is ended.
func (s *successor) outlive(limit time.Duration) {
	defer s.Close() // nothing more is said
	select {
	case <-s.acknowledged():
	case <-s.exited:
		return
	case <-time.After(exitTimeout):
		_ = s.signal(askGoroutines) // it may have ended at this instant
		s.killAfter(exitTimeout)
		return
	}
	if limit < 0 { // it may drain for ever
		<-s.exited
		return
	}
	s.killAfter(limit + hurryTimeout)
}

// killAfter ends a process that does not end by itself.
func (s *successor) killAfter(d time.Duration) {
	select {
	case <-s.exited:
	case <-time.After(d):
		_ = s.signal(os.Kill) // the same
	}
}

// acknowledged reads what the successor still says. It is closed by stopping,
// or by the end of the channel.
func (s *successor) acknowledged() <-chan struct{} {
	heard := make(chan struct{})
	go func() {
		for m := range s.inbox {
			if _, ok := m.(wire.Stopping); ok {
				break
			}
		}
		close(heard)
		for range s.inbox { // the rest is of no interest
		}
		_ = s.Close() // nothing more will be said
	}()
	return heard
}

// words is what run selects on; there is none to listen to if s is nil.
func (s *successor) words() <-chan wire.Message {
	if s == nil {
		return nil
	}
	return s.inbox
}

// launch starts the successor by fork and exec, the carrier inherit. What can
// fail is tried first; nothing has happened if it returns an error, but for
// the pidfile, which the caller rolls back.
func (u *Upgrader) launch(ctx context.Context) (*successor, error) {
	u.reach("prepare")
	next, err := u.pidfile.prepare()
	if err != nil {
		return nil, u.attemptError(PhasePrepare, err)
	}
	img, err := u.image(ctx)
	if err != nil {
		return nil, u.attemptError(PhasePrepare, err)
	}
	defer img.Close() // nothing was written
	meta, dups, err := u.bequest(ctx)
	if err != nil {
		return nil, u.attemptError(PhasePrepare, err)
	}
	defer closeAll(dups)
	local, remote, err := fd.Pair()
	if err != nil {
		return nil, u.attemptError(PhasePrepare, err)
	}
	defer remote.Close() // the successor has its own

	p, err := u.start(ctx, img, inheritance{remote, next, meta, dups})
	if err != nil {
		return nil, errors.Join(u.attemptError(startPhase(err), err), local.Close())
	}
	u.reach("started")
	if err := u.pidfile.name(p.Pid); err != nil {
		_ = p.Kill() // it was not told anything yet
		_, _ = p.wait()
		return nil, errors.Join(u.attemptError(PhaseStart, err), local.Close())
	}
	return u.follow(p, wire.NewConn(local), meta), nil
}

// image returns what is to be executed, checked: what lies at the path, or with
// a Preflight what lay there when it was opened.
func (u *Upgrader) image(ctx context.Context) (*image, error) {
	path := u.executable.path()
	if u.options.Preflight == nil {
		return &image{path: path}, checkExecutable(path)
	}
	i, err := openImage(path)
	if err != nil {
		return nil, err
	}
	if err := u.preflight(ctx, i); err != nil {
		return nil, errors.Join(fmt.Errorf("preflight: %w", err), i.Close())
	}
	return i, nil
}

// startPhase is the phase in which start has failed with err: what it would not
// even try is not the system's refusal.
func startPhase(err error) Phase {
	if errors.Is(err, errChanged) || errors.Is(err, errMoved) {
		return PhasePrepare
	}
	return PhaseStart
}

// inheritance is what the successor gets, in the order of its descriptors.
type inheritance struct {
	channel *os.File
	pidfile *os.File // nil: none
	meta    []wire.Socket
	sockets []*os.File
}

// files returns the descriptors from 3 on, and the variables that name them.
func (in inheritance) files(generation int) ([]*os.File, []string, error) {
	const first = 3
	files := []*os.File{in.channel}
	env := environment{channel: first, generation: generation, predecessor: os.Getpid()}
	if in.pidfile != nil {
		env.pidfile = first + len(files)
		files = append(files, in.pidfile)
	}
	for i, f := range in.sockets {
		env.fds = append(env.fds, namedFD{in.meta[i].Name, first + len(files)})
		files = append(files, f)
	}
	vars, err := env.strings()
	return files, vars, err
}

// A binary that is still being written cannot be executed: ETXTBSY. Any fork
// in this process can also hold a writable descriptor of it for an instant.
const (
	busyRetries = 10
	busyPause   = 50 * time.Millisecond
)

func (u *Upgrader) start(ctx context.Context, img *image, in inheritance) (*started, error) {
	extra, vars, err := in.files(u.Generation() + 1)
	if err != nil {
		return nil, err
	}
	stdio, closeStdio, err := stdio()
	if err != nil {
		return nil, err
	}
	defer closeStdio()
	path, files := img.inherited(append(stdio, extra...))
	argv := append([]string{img.path}, u.args()...)
	attr := &os.ProcAttr{
		Dir:   u.executable.dir(u.options.Dir),
		Env:   append(withoutOurs(u.env()), vars...),
		Files: files,
	}
	pidfd, child := -1, !fd.CanPollProcesses() || !reapsStrangers(os.LookupEnv, os.Getppid())
	attr.Sys = fd.Started(&pidfd, !child)
	for range busyRetries {
		if err := img.unchanged(); err != nil {
			return nil, err
		}
		p, err := os.StartProcess(path, argv, attr)
		if err == nil {
			return newStarted(p, pidfd, child), nil
		}
		if !errors.Is(err, syscall.ETXTBSY) {
			return nil, img.execError(path, err)
		}
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return nil, img.busy()
}

func (u *Upgrader) args() []string {
	if u.options.Args != nil {
		return u.options.Args
	}
	return os.Args[1:]
}

// env is the successor's environment. What the service manager offers is for
// the service, whatever else the program wants in there.
func (u *Upgrader) env() []string {
	if u.options.Env == nil {
		return os.Environ()
	}
	names := []string{envNotify, envWatchdog, envSupervisor}
	env := without(u.options.Env, names...)
	for _, name := range names {
		if v, found := os.LookupEnv(name); found {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// stdio returns standard input, output and error, with /dev/null for what this
// process has closed: the successor must not find a socket there.
func stdio() (files []*os.File, closeNull func(), err error) {
	files = []*os.File{os.Stdin, os.Stdout, os.Stderr}
	var null *os.File
	for i, f := range files {
		if f != nil && f.Fd() != ^uintptr(0) {
			continue
		}
		if null == nil {
			if null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
				return nil, nil, err
			}
		}
		files[i] = null
	}
	return files, func() { _ = null.Close() }, nil
}

// started is a process that was just started.
type started struct {
	*os.Process
	pidfd *os.File // nil: this system has none
	child bool     // else a sibling: somebody else reaps it
}

func newStarted(p *os.Process, pidfd int, child bool) *started {
	s := &started{Process: p, child: child}
	if pidfd >= 0 {
		s.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	}
	return s
}

// ends returns when the process has ended, if this system can tell that of a
// process which is not reaped. wait does in any case.
func (s *started) ends() {
	if s.pidfd != nil {
		_ = fd.WaitProcess(s.pidfd) // if it fails, wait is left
	}
}

// wait returns when the process has ended, with its state if it is our child.
func (s *started) wait() (*os.ProcessState, error) {
	if s.pidfd != nil {
		defer s.pidfd.Close() // nothing is written
	}
	if s.child {
		return s.Wait()
	}
	return nil, fd.WaitProcess(s.pidfd)
}

// id is the inode of the pidfd, which names this process and no later one.
func (s *started) id() uint64 {
	if s.pidfd == nil {
		return 0
	}
	at, err := fd.AttributesOf(s.pidfd)
	if err != nil {
		return 0
	}
	return at.Ino
}

// follow watches a process that was started: its words and its end.
func (u *Upgrader) follow(p *started, l link, meta []wire.Socket) *successor {
	s := &successor{
		peer: newPeer(l, p.Pid, nil), exited: make(chan struct{}), signal: p.Signal,
		given: meta, id: p.id(), pidfd: p.pidfd, child: p.child,
	}
	s.reap = func() { s.state, _ = p.wait() } // a child has a state
	go func() {
		p.ends()
		if !s.left.Load() {
			s.reap()
		}
		close(s.exited)
		// A descendant may hold the channel open. What the successor has said is
		// still read, then its end.
		_ = s.CloseRead()
	}()
	return s
}

func (u *Upgrader) attemptError(phase Phase, err error) *SuccessorError {
	if errors.Is(err, syscall.EMFILE) {
		err = fmt.Errorf("%w: RLIMIT_NOFILE is %d: raise it", err, fd.Limit())
	}
	return &SuccessorError{Phase: phase, Path: u.executable.path(), Err: err}
}

// manifest is what the successor is told after its hello.
func (u *Upgrader) manifest(sockets []wire.Socket, counters wire.Counters) wire.Manifest {
	return wire.Manifest{
		Version:      wire.Version,
		Generation:   u.Generation() + 1,
		PIDFile:      u.options.PIDFile,
		Probation:    max(u.options.Probation, 0),
		DrainTimeout: max(u.options.DrainTimeout, 0),
		Sockets:      sockets,
		Build:        u.build,
		Counters:     counters,
	}
}
