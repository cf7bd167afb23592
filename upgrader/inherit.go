package upgrader

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// legacy is what a process finds of its predecessor when it starts.
type legacy struct {
	generation int
	pid        int
	process    *os.Process   // the predecessor, which has started this process
	channel    *net.UnixConn // nil: no predecessor, or it is gone already
	conn       *wire.Conn
	manifest   wire.Manifest // zero if the predecessor was gone before it sent one
	pidfile    *os.File      // the locked next pidfile; nil: none
	taken      bool          // this process has come for the sockets: nobody has started it for that
	again      bool          // it is a standby, and has everything
	files      []*os.File    // taken, and not looked at yet
	pidfd      *os.File      // the predecessor's, if this process has taken over
	turn       *os.File      // what a standby waits for
	executable string        // the path of what was executed by its descriptor; empty: it was by path
}

// inherit takes what the environment says is this process's, and unsets it, so
// that no subprocess finds it.
//
// An environment that was not meant for this process, because somebody leaked
// it, is no predecessor: it is logged, and the process is generation 1.
func (u *Upgrader) inherit() (*legacy, error) {
	e, ok, err := parseEnv(os.LookupEnv)
	for _, name := range envNames {
		_ = os.Unsetenv(name) // the name is valid
	}
	var channel *net.UnixConn
	if ok && err == nil {
		channel, err = openChannel(e)
	}
	if err != nil {
		u.log.Warn("environment ignored", "err", err)
	}
	if channel == nil {
		return u.begin()
	}
	l := &legacy{generation: e.generation, pid: e.predecessor, channel: channel, conn: wire.NewConn(channel)}
	if p, err := os.FindProcess(e.predecessor); err == nil {
		l.process = p
	}
	if wasExecutedByDescriptor(os.Args[0], e.names) && filepath.IsAbs(os.Args[0]) {
		l.executable = os.Args[0]
	}
	if err := errors.Join(u.takeDescriptors(e, l), u.handshake(l)); err != nil {
		return nil, l.giveUp(err)
	}
	return l, nil
}

// begin is how a process that nobody has started as a successor comes to its
// sockets.
func (u *Upgrader) begin() (*legacy, error) {
	u.manager = findManager(os.LookupEnv, true, u.log)
	u.activate()
	l, err := u.takeOver()
	if err != nil {
		return nil, err
	}
	if l == nil {
		return &legacy{generation: 1}, nil
	}
	return l, nil
}

// end returns what ends the predecessor, nil if this process cannot.
func (l *legacy) end() func() error {
	switch {
	case l.process != nil:
		return l.process.Kill
	case l.pidfd != nil:
		return func() error { return fd.SignalProcess(l.pidfd, syscall.SIGKILL) }
	}
	return nil
}

// openChannel returns the handover channel, if it is one and comes from the
// process that the environment names. Only then is the descriptor this
// process's to close.
func openChannel(e environment) (*net.UnixConn, error) {
	c, err := fd.OpenChannel(e.channel)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", envChannel, err)
	}
	pid, err := fd.PeerPID(c)
	if err == nil && pid != e.predecessor {
		err = fmt.Errorf("the channel is from process %d, %s is %d", pid, envPredecessor, e.predecessor)
	}
	var inherited *os.File
	if err == nil {
		inherited, err = fd.Inherit(e.channel, "handover channel")
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, inherited.Close()
}

func (u *Upgrader) takeDescriptors(e environment, l *legacy) error {
	if e.pidfile != 0 {
		f, err := fd.Inherit(e.pidfile, "pidfile")
		if err != nil {
			return fmt.Errorf("%s: %w", envPIDFile, err)
		}
		l.pidfile = f
	}
	var errs []error
	for _, named := range e.fds {
		f, err := fd.Inherit(named.fd, named.name)
		if err == nil {
			err = u.sockets.park(&socket{Socket: wire.Socket{Name: named.name}, parked: f, inherited: true})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("inherit %q: %w", named.name, err))
		}
	}
	return errors.Join(errs...)
}

// handshake says hello and reads the manifest. A predecessor that is gone
// before it sent one leaves what the environment and the kernel know.
func (u *Upgrader) handshake(l *legacy) error {
	u.reach("hello")
	// If this fails the predecessor is gone, or has said why it gives up.
	_ = l.conn.Send(u.hello(l.again))
	m, err := u.firstWord(l)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: %s sent no manifest in %v: %w", ErrAborted, l.who(), helloTimeout, ErrTimeout)
	case err != nil && isGone(err):
		_ = l.channel.Close() // its other end is
		l.channel, l.conn = nil, nil
		return nil
	case err != nil:
		return err
	}
	switch m := m.(type) {
	case wire.Abort:
		return fmt.Errorf("%w: %s", ErrAborted, m.Reason)
	case wire.Answer: // to a hello that it does not take
		return fmt.Errorf("%w: %s", ErrAborted, m.Text)
	case wire.Moved:
		return errDied
	case wire.Manifest:
		l.manifest = m
		if l.taken {
			l.generation, l.pid = m.Generation, m.PID
			return checkVersion(m)
		}
		u.reach("manifest")
		return u.check(m, l.generation)
	default:
		return fmt.Errorf("%s sent a %T, want a manifest", l.who(), m)
	}
}

// firstWord returns the answer to hello. It takes as long as the predecessor says
// that it is at it: its states may be large, or be another process's for now.
func (u *Upgrader) firstWord(l *legacy) (wire.Message, error) {
	for {
		if err := l.channel.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
			return nil, err
		}
		m, files, err := l.conn.Receive()
		closeAll(files)
		p, working := m.(wire.Progress)
		if err != nil || !working {
			return m, errors.Join(err, l.channel.SetReadDeadline(time.Time{}))
		}
		u.log.Info("waiting for the predecessor", "pid", os.Getpid(), "predecessor", l.pid, "text", p.Text)
	}
}

func (u *Upgrader) hello(again bool) wire.Hello {
	return wire.Hello{
		Version: wire.Version, PID: os.Getpid(), Build: u.build,
		Standby: u.options.Standby, Managed: os.Getenv(envNotify) != "", Again: again,
	}
}

// isFirst reports that no predecessor has started this process: what a service
// manager offers is for it.
func (l *legacy) isFirst() bool { return l.generation == 1 || l.taken }

// who names the predecessor in an error.
func (l *legacy) who() string {
	if l.pid == 0 {
		return "the process that has the control socket"
	}
	return fmt.Sprintf("process %d", l.pid)
}

func checkVersion(m wire.Manifest) error {
	if m.Version != wire.Version {
		return fmt.Errorf("the predecessor speaks version %d of the handover protocol, this build version %d", m.Version, wire.Version)
	}
	return nil
}

// check compares the manifest with what was inherited, and keeps its words.
func (u *Upgrader) check(m wire.Manifest, generation int) error {
	if err := checkVersion(m); err != nil {
		return err
	}
	if m.Generation != generation {
		return fmt.Errorf("the manifest is for generation %d, %s says %d", m.Generation, envGeneration, generation)
	}
	return u.sockets.describe(m.Sockets)
}

// describe completes the inherited sockets with what the manifest says.
func (ss *sockets) describe(meta []wire.Socket) error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if len(meta) != len(ss.named) {
		return fmt.Errorf("the manifest names %d sockets and files, %d were inherited", len(meta), len(ss.named))
	}
	for _, m := range meta {
		s := ss.named[m.Name]
		if s == nil {
			return fmt.Errorf("the manifest names %q, which was not inherited", m.Name)
		}
		kind, err := fd.Kind(s.parked)
		if err != nil || m.Kind != kindFile && m.Kind != kind {
			return errors.Join(fmt.Errorf("the manifest says that %q is a %s, it is a %s", m.Name, m.Kind, kind), err)
		}
		if err := s.checkState(m); err != nil {
			return err
		}
		s.Socket = m
	}
	return nil
}

// giveUp tells the predecessor why this process cannot be its successor.
func (l *legacy) giveUp(err error) error {
	if l.conn == nil {
		return err
	}
	_ = l.conn.Send(wire.Failed{Text: err.Error()}) // if it is gone, nobody asks
	return errors.Join(err, l.conn.Close())
}

// build says which build of the program this is: its version and, behind a
// blank, the revision, if it is known.
func build(version string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version
	}
	version = strings.ReplaceAll(cmp.Or(version, info.Main.Version), " ", "-")
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return version + " " + s.Value
		}
	}
	return version
}
