//go:build linux

package managers

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
)

// systemd is one that scripts/systemd.sh has booted, for several units.
type systemd struct {
	dir   string
	init  int // its pid
	units atomic.Int32
}

// bootSystemd boots the one that is installed, or the one that usr is of.
func bootSystemd(t *testing.T, version, usr string) *systemd {
	t.Helper()
	installed(t, "systemd", "systemctl", "nsenter")
	d := &systemd{dir: t.TempDir()}
	script := filepath.Join("..", "..", "scripts", "systemd.sh")
	said := run(t, script, "boot", d.dir, usr)
	t.Cleanup(func() { run(t, script, "end", d.dir) })
	var err error
	if d.init, err = strconv.Atoi(strings.TrimSpace(said)); err != nil {
		t.Fatalf("systemd.sh: %q", said)
	}
	if got := d.systemctl(t, "show", "-p", "Version"); !strings.HasPrefix(got, "Version="+version) {
		missing(t, "systemd "+version+" is not there, but "+got)
	}
	return d
}

// inside runs a command where systemd is process 1.
func (d *systemd) inside(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return try(t, "nsenter", append([]string{"-t", strconv.Itoa(d.init), "-a"}, args...)...)
}

func (d *systemd) systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.inside(t, append([]string{"systemctl"}, args...)...)
	if err != nil {
		t.Fatalf("systemctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// unit is one of contrib/systemd under a name of its own.
type unit struct {
	*systemd
	t         *testing.T
	name      string // without .service
	activated bool   // there is a .socket
	s         *service

	before int // starts of the server when it was last started by hand
}

// drop is what a test changes of a unit: where things are, and the flags.
const drop = `[Unit]
DefaultDependencies=no
[Service]
BindReadOnlyPaths=%[1]s/bin:/usr/local/bin
StandardOutput=file:%[1]s/journal
StandardError=file:%[1]s/journal
Environment="APP_FLAGS=%[2]s"
%[3]s
`

// open starts the server as contrib/systemd/NAME.service, with more settings.
func (d *systemd) open(t *testing.T, name, flags, more string) *service {
	t.Helper()
	h := newHome(t)
	u := &unit{systemd: d, t: t, name: fmt.Sprintf("%s-%d", name, d.units.Add(1))}
	d.put(t, u.name+".service", h.contrib("systemd/"+name+".service"),
		fmt.Sprintf(drop, h.dir, strings.Join(h.flags(flags), " "), more))
	if _, err := os.Stat("../../contrib/systemd/" + name + ".socket"); err == nil {
		u.activated = true
		d.put(t, u.name+".socket", h.contrib("systemd/"+name+".socket"),
			"[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=\nListenStream="+h.addr+"\n")
	}
	h.install("app-start", filepath.Join("..", "..", "contrib", "systemd", "app-start"))
	u.s = &service{Server: u.log(h), home: h, manager: u, init: func() int { return d.init }}
	t.Cleanup(u.end)
	// No daemon-reload: it makes systemd 252 and 254 begin anew to wait for a restart
	// of another unit that is due, and count that twice.
	if u.activated {
		d.systemctl(t, "start", u.name+".socket")
	}
	u.start()
	return u.s
}

// put installs a unit with a drop-in.
func (d *systemd) put(t *testing.T, name, from, drop string) {
	t.Helper()
	path := filepath.Join(d.dir, "units", name)
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(path, content, 0o644)
	}
	if err == nil {
		err = os.Mkdir(path+".d", 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(path+".d", "test.conf"), []byte(drop), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// log reads what the unit writes, to the end of the test: the server is none of
// the test's children.
func (u *unit) log(h home) *proctest.Server {
	u.t.Helper()
	pipe := filepath.Join(h.dir, "journal")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		u.t.Fatal(err)
	}
	// Open for writing too: it does not end when there is no server.
	return proctest.Exec(u.t, "sh", "-ec", `exec cat <>"$1"`, "sh", pipe, "-listen", h.addr,
		"-pidfile", fmt.Sprintf("/proc/%d/root/run/%s/app.pid", u.init, u.name))
}

// end leaves no process of the unit behind, whatever has become of it.
func (u *unit) end() {
	if u.activated {
		u.systemctl(u.t, "stop", u.name+".socket")
	}
	if u.t.Failed() {
		said, err := u.inside(u.t, "journalctl", "--no-pager", "-o", "short-precise", "-u", u.name)
		u.t.Log(err, said)
	}
	_, _ = u.inside(u.t, "systemctl", "kill", "-s", "KILL", u.name) // it may have ended
	u.systemctl(u.t, "stop", u.name)
}

// show returns a property of the unit.
func (u *unit) show(property string) string {
	u.t.Helper()
	return strings.TrimSpace(u.systemctl(u.t, "show", "--value", "-p", property, u.name))
}

func (u *unit) number(property string) int {
	u.t.Helper()
	n, err := strconv.Atoi(u.show(property))
	if err != nil {
		u.t.Fatalf("%s: %v", property, err)
	}
	return n
}

// pid is 0, or 1: systemd is told of each new process, and does not lose the
// service as long as what it watches is what the pidfile names.
func (u *unit) pid() int {
	u.t.Helper()
	// After a crash it learns from the pidfile that the server is back, for example.
	until(u.t, u.name+" has no job", func() bool { return !strings.HasSuffix(u.show("ActiveState"), "ating") })
	pid := u.number("MainPID")
	if pid == 0 {
		return 0
	}
	if want := u.s.PID(); pid != want {
		u.t.Errorf("systemd watches process %d, the pidfile names %d", pid, want)
	}
	if got, want := u.number("NRestarts"), u.s.starts()-u.before-1; got != want {
		u.t.Errorf("systemd has counted %d restarts, there were %d", got, want)
	}
	return 1
}

// signal is for every process of the unit, as systemctl has it by default: also for
// one that drains, is on probation, or was executed just now.
func (u *unit) signal(sig syscall.Signal) {
	u.t.Helper()
	u.systemctl(u.t, "kill", "-s", strconv.Itoa(int(sig)), u.name)
}

func (u *unit) stop() {
	u.t.Helper()
	u.systemctl(u.t, "stop", u.name)
	if got := u.show("Result"); got != "success" {
		u.t.Errorf("the result of a stop is %s", got)
	}
}

func (u *unit) start() {
	u.t.Helper()
	u.before = u.s.starts()
	u.systemctl(u.t, "start", u.name)
}

func (u *unit) restart() {
	u.t.Helper()
	u.before = u.s.starts()
	u.systemctl(u.t, "restart", u.name)
}

// Not parallel to other tests: each of the two fills the machine, and what is asked of a
// busy systemctl takes its time.
//
//nolint:tparallel // as said
func TestSystemd252(t *testing.T) {
	testSystemd(t, bootSystemd(t, "252", ""), "notify", "simple", "exec", "forking", "activated")
}

//nolint:tparallel // like the one of 252
func TestSystemd254(t *testing.T) {
	usr, err := filepath.Abs("../../bin/systemd-254/usr")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(usr); err != nil {
		missing(t, "no systemd 254: scripts/setup.sh unpacks it")
	}
	d := bootSystemd(t, "254", usr)
	testSystemd(t, d, "notify", "notify-reload", "simple", "exec", "forking", "activated")
	t.Run("reload", func(t *testing.T) {
		t.Parallel()
		reloadBySignal(t, d)
	})
}

// noSibling hides from the server that its parent is systemd: it does not start its
// successors as siblings.
const noSibling = "ProtectProc=invisible"

// testSystemd runs the scenarios with each of the units, and with both values of
// NotifyAccess= that let the server name its successor.
func testSystemd(t *testing.T, d *systemd, units ...string) {
	t.Helper()
	t.Run("dies while it is named", func(t *testing.T) {
		t.Run("NotifyAccess all", func(t *testing.T) {
			diesWhileNamed(t, d.open(t, "notify", "-probation 100ms", "NotifyAccess=all"))
		})
		t.Run("no sibling", func(t *testing.T) { diesWhileNamed(t, d.open(t, "notify", "-probation 100ms", noSibling)) })
		for _, name := range units {
			t.Run(name, func(t *testing.T) { diesWhileNamed(t, d.open(t, name, "-probation 100ms", "")) })
		}
	})
	for _, name := range units {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			live(t, func(t *testing.T, flags string) *service { return d.open(t, name, flags, "") })
		})
	}
	t.Run("verdict", func(t *testing.T) {
		t.Parallel()
		reloadWithVerdict(t, d)
	})
	t.Run("no sibling", func(t *testing.T) {
		t.Parallel()
		s := d.open(t, "notify", "-probation 100ms", noSibling)
		s.Wait(proctest.Reached(1, "serving"))
		u := s.manager.(*unit)
		killedOnce(t, s, func() { // see ProtectProc in docs/operations/systemd.md
			until(t, "systemd has heard of the new process", func() bool { return u.show("StatusText") == "serving, generation 2" })
		})
	})
	t.Run("activated by a connection", func(t *testing.T) {
		t.Parallel()
		activatedByConnection(t, d)
	})
	t.Run("standby", func(t *testing.T) {
		t.Parallel()
		hotStandby(t, d)
	})
	t.Run("NotifyAccess all", func(t *testing.T) {
		t.Parallel()
		live(t, func(t *testing.T, flags string) *service { return d.open(t, "notify", flags, "NotifyAccess=all") })
	})
	for _, access := range []string{"main", "all"} {
		t.Run("old one killed on probation, NotifyAccess "+access, func(t *testing.T) {
			t.Parallel()
			leftAlone(t, d.open(t, "notify", "-probation 2s", "NotifyAccess="+access))
		})
	}
}

// leftAlone is a successor whose predecessor is killed before it has named it.
// systemd either hears of it before it hears of that death, or starts another
// process, which takes over from it.
func leftAlone(t *testing.T, s *service) {
	t.Helper()
	s.Wait(proctest.Reached(1, "serving"))
	u, old := s.manager.(*unit), s.PID()
	l, end := s.under()
	next := s.begin(s.build("v2"))
	s.Wait(proctest.Changed(next, "on probation"))
	now := s.Now()
	s.crash(l, old, func() { s.After(now, proctest.Changed(next, "serving")) })
	until(t, "systemd watches the process that serves", func() bool {
		return u.show("ActiveState") == "active" && u.number("MainPID") == s.PID()
	})
	l.WaitFor(s.PID())
	l.WaitFor(s.upgraded())
	end()
	if got := u.number("MainPID"); got != s.PID() {
		t.Errorf("systemd watches process %d, the pidfile names %d", got, s.PID())
	}
	s.stop()
	s.alone()
}

// diesWhileNamed is a successor that dies when it has been named, and before systemd
// has read that. Then it watches the old process, which serves again.
//
// systemd is stopped meanwhile: nothing else can run beside it.
func diesWhileNamed(t *testing.T, s *service) {
	t.Helper()
	s.Wait(proctest.Reached(1, "serving"))
	old, init := s.PID(), s.init()
	l, end := s.under()
	s.install("app", proctest.Faulty(t, "crash-after-ready:1s"))
	s.Signal(init, syscall.SIGSTOP)
	defer s.Signal(init, syscall.SIGCONT)
	now, from := s.Now(), time.Now()
	s.kill(old, syscall.SIGUSR1)
	next := hostPID(t, init, s.After(now, proctest.Reached(2, "on probation")).PID)
	until(t, "the successor is dead", func() bool { return isZombie(next) })
	s.Signal(init, syscall.SIGCONT)
	s.After(now, proctest.Logged("service manager stays with this process"))
	s.After(now, proctest.Changed(old, "serving"))
	cutUntilNow(l, from)
	s.watched(1, 1)
	s.install("app", s.build("v2"))
	l.WaitFor(s.upgraded())
	end()
	s.watched(1, 1)
}

// isZombie says that a process has ended, whether anybody has taken note or not.
func isZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// reloadWithVerdict reloads a server whose unit asks it for the verdict.
func reloadWithVerdict(t *testing.T, d *systemd) {
	t.Helper()
	s := d.open(t, "notify", "-probation 1s", "")
	s.Wait(proctest.Reached(1, "serving"))
	u := s.manager.(*unit)
	l, end := s.under()
	s.install("app", demo(t, "v2"))
	before := s.PID()
	u.systemctl(t, "reload", u.name)
	if s.PID() == before {
		t.Error("systemctl reload has returned before the upgrade was over")
	}
	s.watched(1, 1)
	l.WaitFor(s.PID())

	for fault, phase := range map[string]string{"crash-before-ready": "ready", "crash-after-ready:100ms": "probation"} {
		s.install("app", proctest.Faulty(t, fault))
		before, now, from := s.PID(), s.Now(), time.Now()
		if said, err := u.inside(t, "systemctl", "reload", u.name); err == nil {
			t.Errorf("%s: systemctl reload succeeds: %s", fault, said)
		}
		if s.PID() != before {
			t.Errorf("%s: process %d serves, was %d", fault, s.PID(), before)
		}
		s.After(now, proctest.Text("upgrader: "+phase+": "))
		if got := u.show("StatusText"); !strings.Contains(got, "upgrader: "+phase+": ") {
			t.Errorf("%s: systemd shows %q", fault, got)
		}
		s.watched(1, 1)
		l.Crash(from, time.Now())
	}
	end()
}

// reloadBySignal is Type=notify-reload: systemctl waits, and knows no verdict but
// that the service runs.
func reloadBySignal(t *testing.T, d *systemd) {
	t.Helper()
	s := d.open(t, "notify-reload", "-probation 1s", "")
	s.Wait(proctest.Reached(1, "serving"))
	u := s.manager.(*unit)
	before := s.PID()
	u.systemctl(t, "reload", u.name)
	if s.PID() == before {
		t.Error("systemctl reload has returned before the upgrade was over")
	}
	s.watched(1, 1)

	before = s.PID()
	s.install("app", proctest.Faulty(t, "crash-before-ready"))
	u.systemctl(t, "reload", u.name)
	if got := u.show("StatusText"); s.PID() != before || !strings.Contains(got, "upgrader: ready: ") {
		t.Errorf("process %d serves, was %d; systemd shows %q", s.PID(), before, got)
	}
	s.watched(1, 1)
}

// The first connection starts a server with a socket of its own unit.
func activatedByConnection(t *testing.T, d *systemd) {
	t.Helper()
	s := d.open(t, "activated", "-probation 100ms", "")
	s.Wait(proctest.Reached(1, "serving"))
	s.upgraded()
	s.stop()
	s.alone()
	s.manager.(*unit).before = s.starts()
	if said := s.answers(); !strings.Contains(said, "generation=1 ") {
		t.Errorf("the answer is %q", said)
	}
	s.watched(1, 1+s.manager.(*unit).before)
}
