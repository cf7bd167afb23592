//go:build unix

package proctest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// deploy starts scripts/deploy.sh.
func deploy(t *testing.T, env string, args ...string) *exec.Cmd {
	t.Helper()
	return deployBy(t, Upgradectl(t), env, args...)
}

func deployBy(t *testing.T, upgradectl, env string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "../../scripts/deploy.sh", args...)
	cmd.Env = append(os.Environ(), "UPGRADECTL="+upgradectl, env)
	cmd.Stderr = new(strings.Builder)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// expect wants the deploy to end with this code, and to say this.
func expect(t *testing.T, cmd *exec.Cmd, code int, text string) {
	t.Helper()
	if err := cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	said := cmd.Stderr.(*strings.Builder).String()
	if got := cmd.ProcessState.ExitCode(); got != code || !strings.Contains(said, text) {
		t.Errorf("exit code %d, want %d with %q:\n%s", got, code, text, said)
	}
}

// digest is enough to tell one build from another.
func digest(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// unchanged wants nothing of a deploy to be left but the old binary.
func unchanged(t *testing.T, s *Server, was string) {
	t.Helper()
	if digest(t, s.Path) != was {
		t.Error("the target is not the old binary")
	}
	left(t, s, "demo")
}

// left wants these files and no others beside the target.
func left(t *testing.T, s *Server, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(s.Path))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, names) {
		t.Errorf("files %q, want %q", got, names)
	}
}

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "new")
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDeploySwapsTheBinary(t *testing.T) {
	s := Start(t, Demo(t, "v1"), "-probation", "300ms")
	was := digest(t, s.Path)
	if err := os.Chmod(s.Path, 0o750); err != nil {
		t.Fatal(err)
	}
	v2 := Demo(t, "v2")
	if err := os.Chmod(v2, 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, deploy(t, "", v2, s.Path, s.PIDFile), 0, "has replaced process")

	if got := get(t, s.Target("http-0")); !strings.Contains(got, "generation=2 version=v2") {
		t.Errorf("the server is %s", got)
	}
	if digest(t, s.Path) != digest(t, v2) || digest(t, s.Path+".old") != was {
		t.Error("want the new binary at the target, and the old one beside it")
	}
	if fi, err := os.Stat(s.Path); err != nil || fi.Mode().Perm() != 0o750 {
		t.Errorf("want the old binary's mode: %v %v", fi.Mode(), err)
	}
	left(t, s, "demo", "demo.old")
	expect(t, deploy(t, "", s.Path+".old", s.Path, s.PIDFile), 0, "has replaced process")
	if got := get(t, s.Target("http-0")); !strings.Contains(got, "generation=3 version=v1") {
		t.Errorf("the server is %s", got)
	}
}

// Only a control socket can tell the reason, in the successor's own words.
func TestDeployPutsBackWhatFails(t *testing.T) {
	for _, test := range []struct {
		name   string
		new    func(*testing.T) string
		code   int
		text   string // with a pidfile
		reason string // with a control socket
	}{
		{"missing", func(t *testing.T) string { return filepath.Join(t.TempDir(), "missing") }, 1, "missing is missing", "missing is missing"},
		{"empty", func(t *testing.T) string { return script(t, "") }, 1, "empty", "empty"},
		{"garbage", func(t *testing.T) string { return script(t, "garbage") }, 1, "failed: process", "exec format error"},
		{"exits 1", func(t *testing.T) string { return script(t, "#!/bin/sh\nexit 1\n") }, 1, "failed: process", "exit status 1"},
		{"fails, and says why", func(t *testing.T) string { return Faulty(t, "fail-before-ready") }, 1, "failed: process", "it said    as told: fail-before-ready"},
		{"crashes before it is ready", func(t *testing.T) string { return Faulty(t, "crash-before-ready") }, 1, "failed: process", "failed in phase ready"},
		{"crashes on probation", func(t *testing.T) string { return Faulty(t, "crash-after-ready:1s") }, 3, "rolled back: process", "rolled back in phase probation"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, socket := startControlled(t, "-probation", "2s")
			pid, was := s.PID(), digest(t, s.Path)
			back := func() {
				t.Helper()
				unchanged(t, s, was)
				if s.PID() != pid {
					t.Errorf("process %d serves, was %d", s.PID(), pid)
				}
				get(t, s.Target("http-0"))
			}
			expect(t, deploy(t, "", test.new(t), s.Path, s.PIDFile), test.code, test.text)
			back()
			expect(t, deploy(t, "", "-socket", socket, test.new(t), s.Path), test.code, test.reason)
			back()
		})
	}
}

// startControlled starts a demo with a control socket.
func startControlled(t *testing.T, args ...string) (s *Server, socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "control")
	return Start(t, Demo(t, "v1"), append([]string{"-control", socket}, args...)...), socket
}

func TestDeployThroughTheControlSocket(t *testing.T) {
	s, socket := startControlled(t, "-probation", "300ms")
	expect(t, deploy(t, "", "-socket", socket, Demo(t, "v2"), s.Path), 0, "probation  it serves; process")
	if got := get(t, s.Target("http-0")); !strings.Contains(got, "generation=2 version=v2") {
		t.Errorf("the server is %s", got)
	}
	left(t, s, "demo", "demo.old")
	expect(t, deploy(t, "UPGRADECTL_SOCKET="+socket, s.Path+".old", s.Path), 0, "has replaced process")
	if got := get(t, s.Target("http-0")); !strings.Contains(got, "generation=3 version=v1") {
		t.Errorf("the server is %s", got)
	}
}

func TestDeployThatAnOperatorTakesBack(t *testing.T) {
	s, socket := startControlled(t, "-probation", "1m")
	was := digest(t, s.Path)
	cmd := deploy(t, "", "-socket", socket, Demo(t, "v2"), s.Path)
	s.Wait(Changed(s.PID(), "probation"))
	rollback := exec.CommandContext(t.Context(), Upgradectl(t), "-socket", socket, "rollback")
	if out, err := rollback.CombinedOutput(); err != nil {
		t.Errorf("rollback: %v\n%s", err, out)
	}
	expect(t, cmd, 3, "an operator asked for it")
	unchanged(t, s, was)
}

func TestDeployIsRefusedWhileAnUpgradeIsUnderWay(t *testing.T) {
	s, socket := startControlled(t, "-probation", "2s", "-ready-delay", "2s")
	was := digest(t, s.Path)
	v2 := Demo(t, "v2")
	pid := s.PID()
	s.Signal(pid, syscall.SIGUSR1)
	for _, state := range []string{"upgrading", "probation"} {
		s.Wait(Changed(pid, state))
		expect(t, deploy(t, "", v2, s.Path, s.PIDFile), 2, "an upgrade is under way")
		expect(t, deploy(t, "", "-socket", socket, v2, s.Path), 2, "an upgrade is under way")
		unchanged(t, s, was)
	}
	s.Wait(Changed(pid, "draining"))
	s.Wait(Reached(2, "serving"))
	expect(t, deploy(t, "", v2, s.Path, s.PIDFile), 0, "has replaced process")
}

// What begins between the last look and the request is noticed by upgradectl.
func TestDeployThatIsOvertaken(t *testing.T) {
	for code, text := range map[int]string{2: "busy: ", 4: "no server: ", 5: "are they of one version?", 9: "no verdict"} {
		target := Demo(t, "v1")
		was := digest(t, target)
		tool := script(t, fmt.Sprintf("#!/bin/sh\nexit %d\n", code))
		want := code
		if code == 9 {
			want = 1
		}
		expect(t, deployBy(t, tool, "", Demo(t, "v2"), target, filepath.Join(t.TempDir(), "app.pid")), want, text)
		unchanged(t, &Server{Path: target}, was)
	}
}

func TestSecondDeployIsBusy(t *testing.T) {
	s := Start(t, Demo(t, "v1"), "-probation", "1s")
	v2, v3 := Demo(t, "v2"), Demo(t, "v3")
	var codes []int
	first, second := deploy(t, "", v2, s.Path, s.PIDFile), deploy(t, "", v3, s.Path, s.PIDFile)
	for _, cmd := range []*exec.Cmd{first, second} {
		_ = cmd.Wait()
		codes = append(codes, cmd.ProcessState.ExitCode())
	}
	slices.Sort(codes)
	if !slices.Equal(codes, []int{0, 2}) {
		t.Errorf("exit codes %v, want 0 and 2\n%v%v", codes, first.Stderr, second.Stderr)
	}
	left(t, s, "demo", "demo.old")
}

func TestDeployWithoutAServer(t *testing.T) {
	v1, v2 := Demo(t, "v1"), Demo(t, "v2")
	was := digest(t, v1)
	pidfile := func(text string) string {
		path := filepath.Join(t.TempDir(), "app.pid")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	// A process that did not ask for the signal would die of it.
	stranger := exec.Command("sleep", "60")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer stranger.Wait()
	defer stranger.Process.Kill()

	for name, test := range map[string]struct{ file, text string }{
		"missing":  {filepath.Join(t.TempDir(), "none"), "no such file"},
		"empty":    {pidfile(""), "is not a pid"},
		"garbage":  {pidfile("-1\n"), "is not a pid"},
		"ended":    {pidfile(strconv.Itoa(ended.Process.Pid)), "is stale"},
		"stranger": {pidfile(strconv.Itoa(stranger.Process.Pid)), "is stale"},
	} {
		t.Run(name, func(t *testing.T) {
			expect(t, deploy(t, "", v2, v1, test.file), 4, test.text)
			unchanged(t, &Server{Path: v1}, was)
		})
	}
	t.Run("no control socket", func(t *testing.T) {
		expect(t, deploy(t, "", "-socket", filepath.Join(t.TempDir(), "none"), v2, v1), 4, "no server has opened it")
		unchanged(t, &Server{Path: v1}, was)
	})
	if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the stranger was harmed: %v", err)
	}
}

func TestDeployNoticesThatTheServerEnds(t *testing.T) {
	hang := Faulty(t, "hang-before-ready")
	for _, bySocket := range []bool{false, true} {
		s, socket := startControlled(t)
		was := digest(t, s.Path)
		args, text := []string{hang, s.Path, s.PIDFile}, "has ended without a successor"
		if bySocket {
			args, text = []string{"-socket", socket, hang, s.Path}, "the process that was asked is not the server any more"
		}
		cmd := deploy(t, "", args...)
		s.Wait(Reached(1, "upgrading"))
		s.Signal(s.PID(), syscall.SIGTERM)
		expect(t, cmd, 4, text)
		unchanged(t, s, was)
		s.WaitGone()
	}
}

func TestDeployGivesUpWithoutAVerdict(t *testing.T) {
	s := Start(t, Demo(t, "v1"))
	was := digest(t, s.Path)
	begun := time.Now()
	cmd := deploy(t, "DEPLOY_TIMEOUT=2", Faulty(t, "hang-before-ready"), s.Path, s.PIDFile)
	expect(t, cmd, 1, "no verdict in time")
	if d := time.Since(begun); d < time.Second || d > 10*time.Second {
		t.Errorf("after %v", d)
	}
	if said := cmd.Stderr.(*strings.Builder).String(); !strings.Contains(said, "1 s: prepare: process") {
		t.Errorf("no progress is shown: %q", said)
	}
	unchanged(t, s, was)
}

func TestInterruptedDeployPutsTheOldBinaryBack(t *testing.T) {
	for _, tool := range []string{"cat", "ln", "mv"} {
		t.Run(tool, func(t *testing.T) {
			s := Start(t, Demo(t, "v1"))
			was := digest(t, s.Path)
			env, reached := slowTool(t, tool)
			cmd := deploy(t, env, Demo(t, "v2"), s.Path, s.PIDFile)
			reached()
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			expect(t, cmd, 1, "interrupted: nothing was changed")
			unchanged(t, s, was)
			if events := s.Events(); events[len(events)-1].To != "serving" {
				t.Error("the server was signalled")
			}
		})
	}
	t.Run("after the signal", func(t *testing.T) {
		s := Start(t, Demo(t, "v1"), "-ready-timeout", "1s")
		cmd := deploy(t, "", Faulty(t, "hang-before-ready"), s.Path, s.PIDFile)
		s.Wait(Reached(1, "upgrading"))
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		expect(t, cmd, 1, "interrupted: the upgrade goes on")
		left(t, s, "demo", "demo.old")
	})
}

// slowTool returns an environment in which the tool lingers before it acts, and
// a function that waits until it does.
func slowTool(t *testing.T, tool string) (env string, reached func()) {
	t.Helper()
	dir := t.TempDir()
	path, err := exec.LookPath(tool)
	if err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "reached")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("#!/bin/sh\n[ -p %[1]s ] && echo >%[1]s && rm %[1]s && sleep 1\nexec %[2]s \"$@\"\n", fifo, path)
	if err := os.WriteFile(filepath.Join(dir, tool), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return "PATH=" + dir + ":" + os.Getenv("PATH"), func() {
		if _, err := os.ReadFile(fifo); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDeployUsage(t *testing.T) {
	for _, args := range [][]string{
		nil,
		{"a"},
		{"a", "b"},
		{"a", "b", "c", "d"},
		{"-socket"},
		{"-socket", "s"},
		{"-socket", "s", "a"},
		{"-socket", "", "a", "b"},
		{"-socket", "s", "a", "b", "c"},
	} {
		expect(t, deploy(t, "UPGRADECTL_SOCKET=", args...), 5, "Usage: deploy.sh NEW TARGET PIDFILE")
	}
	for _, limit := range []string{"1m", "0", "-1"} {
		expect(t, deploy(t, "DEPLOY_TIMEOUT="+limit, "a", "b", "c"), 5, "want a number of seconds")
	}
	expect(t, deployBy(t, "/none/upgradectl", "", "a", "b", "c"), 5, "no upgradectl at /none/upgradectl: build it with go build -C")
	help, err := exec.CommandContext(t.Context(), "../../scripts/deploy.sh", "-h").Output()
	if err != nil || !strings.HasPrefix(string(help), "Usage: ") {
		t.Errorf("-h: %v\n%s", err, help)
	}
}

func TestDeployRefusesASymbolicLink(t *testing.T) {
	s := Start(t, Demo(t, "v1"))
	link := filepath.Join(t.TempDir(), "current")
	if err := os.Symlink(s.Path, link); err != nil {
		t.Fatal(err)
	}
	expect(t, deploy(t, "", Demo(t, "v2"), link, s.PIDFile), 1, "is a symbolic link")
	if target, err := os.Readlink(link); err != nil || target != s.Path {
		t.Errorf("the link is changed: %q %v", target, err)
	}
}
