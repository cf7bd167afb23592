package upgrader

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/fd"
)

// The variables with which a service manager tells a service what it offers:
// sd_notify(3), sd_watchdog_enabled(3). The last one is that of a supervisor of
// ours, and names its process.
const (
	envNotify       = "NOTIFY_SOCKET"
	envWatchdog     = "WATCHDOG_USEC"
	envWatchdogPID  = "WATCHDOG_PID"
	envSupervisor   = "UPGRADER_SUPERVISOR_PID"
	systemdsCommand = "systemd"
)

// manager is the service manager, and what it is told of the service. The zero
// manager is none, and hears nothing.
type manager struct {
	send     func(state string, rights ...int) error // nil: there is none
	log      *slog.Logger
	main     bool             // it takes this process for the main one: only then it is told anything
	interval time.Duration    // it wants to hear that often; 0: never
	watchdog <-chan time.Time // when it is to hear next
	stored   map[string]bool  // descriptors that it keeps, by the names they have there
	full     bool             // that it cannot keep them was logged
}

// findManager reads the environment of this process. first says that no
// predecessor has started it, so that it is what the manager started.
func findManager(lookup func(string) (string, bool), first bool, log *slog.Logger) manager {
	m := manager{log: log, main: first, stored: map[string]bool{}}
	address, _ := lookup(envNotify)
	if address == "" {
		return m
	}
	m.send = func(state string, rights ...int) error { return fd.Notify(address, state, rights...) }
	usec, found := lookup(envWatchdog)
	pid, restricted := lookup(envWatchdogPID)
	if !found || first && restricted && pid != strconv.Itoa(os.Getpid()) {
		return m
	}
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n <= 0 || n > int64(24*time.Hour/time.Microsecond)*365 {
		log.Warn("environment ignored", "err", fmt.Errorf("%s=%q: want a number of microseconds", envWatchdog, usec))
		return m
	}
	m.interval = time.Duration(n) * time.Microsecond / 2
	return m
}

// tell sends the fields of one datagram, if this process is the one to speak.
func (m *manager) tell(fields ...string) {
	if m.send == nil || !m.main {
		return
	}
	if err := m.send(strings.Join(fields, "\n")); err != nil {
		m.log.Warn("service manager not told", "what", fields[0], "err", err)
	}
}

// status is a field for people, who read it on one line.
func status(format string, args ...any) string {
	return "STATUS=" + strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
}

func microseconds(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) }

// working says that the service needs d more for what it is doing.
func (m *manager) working(text string, d time.Duration) {
	m.tell("EXTEND_TIMEOUT_USEC="+microseconds(d), status("%s", text))
}

// serving: this process is the server. One that has lost its predecessor
// during the upgrade says that it is the main process now.
func (m *manager) serving(generation int) {
	m.main = true
	fields := []string{"READY=1", status("serving, generation %d", generation)}
	if generation > 1 {
		fields = append([]string{"MAINPID=" + strconv.Itoa(os.Getpid())}, fields...)
	}
	m.tell(fields...)
	m.ping()
}

// upgrading: until ready or failed is told, a manager's reload waits.
func (m *manager) upgrading(to int) {
	m.tell("RELOADING=1", "MONOTONIC_USEC="+microseconds(fd.Monotonic()), status("upgrading to generation %d", to))
}

// failed: this process serves on.
func (m *manager) failed(err error) {
	m.tell("READY=1", status("upgrade failed: %v", err), "ERRNO="+strconv.Itoa(int(errno(err))))
}

// errno is what a manager shows beside the text of err.
func errno(err error) syscall.Errno {
	if errors.Is(err, ErrTimeout) {
		return syscall.ETIMEDOUT
	}
	var n syscall.Errno
	errors.As(err, &n)
	return cmp.Or(n, syscall.ECANCELED)
}

// name says that the successor is the main process from here on; this one says
// nothing more. What is sent into the channel is whether the manager has taken
// that, which it has not if the successor was dead when it read the name.
func (m *manager) name(s *successor) <-chan bool {
	fields := []string{"MAINPID=" + strconv.Itoa(s.pid)}
	if s.id != 0 {
		fields = append(fields, "MAINPIDFDID="+strconv.FormatUint(s.id, 10))
	}
	m.tell(fields...)
	m.leave()
	taken, asks := make(chan bool, 1), *m
	go func() {
		asks.barrier()
		// One that lived until now was alive when it was named. A manager that still has
		// not read the name of a dead one will refuse it.
		taken <- !s.hasEnded() || !asks.isHeard()
	}()
	return taken
}

// barrier waits until the manager has read all that it was told before,
// sd_notify_barrier(3): it closes the descriptor, as does one that does not know
// what that is for. One that reads nothing at all is not waited for any longer.
func (m *manager) barrier() {
	r, err := m.ask("BARRIER=1")
	if err != nil {
		m.log.Warn("service manager not told", "what", "BARRIER=1", "err", err)
		return
	}
	defer r.Close()
	if !fd.HungUp(r, barrierTimeout) {
		m.log.Warn("service manager silent", "err", ErrTimeout)
	}
}

// probeName is what isHeard stores. parseStored knows that it is no socket.
const probeName = storedPrefix + "probe"

// isHeard reports that the manager takes what this process says, as it does from
// the main one: it stores a descriptor then, and closes it otherwise.
func (m *manager) isHeard() bool {
	r, err := m.ask("FDSTORE=1\nFDNAME=" + probeName)
	if err != nil {
		return false
	}
	defer r.Close()
	m.barrier()
	heard := !fd.HungUp(r, 0)
	if err := m.send("FDSTOREREMOVE=1\nFDNAME=" + probeName); err != nil {
		m.log.Warn("service manager not told", "what", "FDSTOREREMOVE=1", "err", err)
	}
	return heard
}

// ask sends the writing end of a pipe.
func (m *manager) ask(state string) (r *os.File, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close() // the manager has its own
	if err := m.pass(state, w); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// pass sends a duplicate of a descriptor.
func (m *manager) pass(state string, f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = rc.Control(func(n uintptr) { sendErr = m.send(state, int(n)) })
	return errors.Join(err, sendErr)
}

// regain: this process is the main one after all.
func (m *manager) regain() {
	m.main = true
	m.tell("MAINPID=" + strconv.Itoa(os.Getpid()))
	m.ping()
}

// left: the successor has a manager of its own, and the service goes on there.
func (m *manager) left(generation, pid int) {
	m.tell("READY=1", status("draining: generation %d, process %d, has taken over", generation, pid))
	m.unwatched()
	m.leave()
}

// standingBy: a standby is up, as far as its manager is concerned.
func (m *manager) standingBy(generation int) {
	m.tell("READY=1", status("standing by to be generation %d", generation))
	m.ping()
}

// stopping: the service ends, and it is no fault. What drains after an upgrade
// never says so: systemd would stop the unit.
func (m *manager) stopping() {
	m.tell("STOPPING=1", status("stopping"))
	m.leave()
}

// unwatched: this process drains, and stays the manager's main one. Nobody is to say
// for so long that it is alive.
func (m *manager) unwatched() {
	if m.interval != 0 {
		m.tell("WATCHDOG_USEC=0")
	}
}

// leave makes this process one that the manager does not listen to any more.
func (m *manager) leave() { m.main, m.watchdog = false, nil }

// take is what the successor says first once it is the main process: that it can
// be triggered, and a reload is over.
func (m *manager) take(generation int) {
	m.main = true
	m.tell("READY=1", status("serving, generation %d", generation))
	m.ping()
}

// ping tells the watchdog that run still runs.
func (m *manager) ping() {
	if m.send == nil || m.interval == 0 || !m.main {
		return
	}
	m.tell("WATCHDOG=1")
	m.watchdog = time.After(m.interval)
}

// ---- the parent ----

// reapsStrangers reports that this process's parent waits for children that it
// has not started: systemd does, and our supervisor. A successor becomes such a
// child, a sibling of this process, so that its death is seen at once.
func reapsStrangers(lookup func(string) (string, bool), parent int) bool {
	if supervisor, _ := lookup(envSupervisor); supervisor == strconv.Itoa(parent) {
		return true
	}
	return command(parent) == systemdsCommand
}

// supervisorEnds returns a channel that is closed when the parent, if that is a
// supervisor of ours, has ended. It is nil if it is not, or this kernel has no pidfds.
func supervisorEnds(lookup func(string) (string, bool), parent int) <-chan struct{} {
	if supervisor, _ := lookup(envSupervisor); supervisor != strconv.Itoa(parent) {
		return nil
	}
	pidfd, err := fd.OpenProcess(parent)
	if err != nil {
		return nil
	}
	ended := make(chan struct{})
	go func() { // to the end of this process, or of its parent
		defer pidfd.Close()
		if os.Getppid() != parent || fd.WaitProcess(pidfd) == nil {
			close(ended)
		}
	}()
	return ended
}

// supervisorEnded stops the service. Nobody watches it any more or passes its
// signals on, and whoever takes the supervisor's place starts another server, which
// fails for as long as this one has the pidfile.
func (r *run) supervisorEnded() {
	r.orphaned = nil
	if r.state.final() {
		return
	}
	r.log.Warn("supervisor gone", "pid", os.Getpid(), "generation", r.Generation(), "supervisor", os.Getenv(envSupervisor),
		"what", "the service stops, so that the next supervisor can start it")
	r.stop(stopRequest{service: true})
}

// command is the name of a process, empty if it is not known.
func command(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // absent where there is no Linux
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// losing lists the process managers that watch the process which they have
// started, and nothing else.
var losing = map[string]string{
	"runsv":        "in the run script: exec upgradectl supervise -restart on-failure -- COMMAND",
	"s6-supervise": "in the run script: exec upgradectl supervise -restart on-failure -- COMMAND",
	"supervise":    "in the run script: exec upgradectl supervise -restart on-failure -- COMMAND",
	"supervisord":  "in its configuration: command=upgradectl supervise -restart on-failure -- COMMAND",
}

// trouble says what an upgrade would come to under this parent, and its cure;
// empty if all is well.
func trouble(parent string, notified, pidfile bool) (what, cure string) {
	if cure := losing[parent]; cure != "" {
		return parent + " will take the first upgrade for the end of the service and start a second copy", cure
	}
	if parent == systemdsCommand && !notified && !pidfile {
		return "systemd will take the first upgrade for the end of the service and stop it", "in the unit: Type=notify, or NotifyAccess=main"
	}
	return "", ""
}

// warnOfParent logs once what will go wrong under this process's parent.
func (u *Upgrader) warnOfParent() {
	what, cure := trouble(command(os.Getppid()), u.manager.send != nil, u.options.PIDFile != "")
	if what != "" {
		u.log.Warn("process manager loses upgrades", "pid", os.Getpid(), "what", what, "cure", cure)
	}
}
