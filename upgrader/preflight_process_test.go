//go:build linux

package upgrader

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// own is a copy of this test binary.
func own(path string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return exec.Command("cp", self, path).Run()
}

// with lets put make a file and then changes it.
func with(put, change func(path string) error) func(path string) error {
	return func(path string) error {
		if err := put(path); err != nil {
			return err
		}
		return change(path)
	}
}

// goCommand is a Go program that is not this one.
func goCommand(path string) error {
	found, err := exec.LookPath("go")
	if err != nil {
		return err
	}
	return os.Symlink(found, path)
}

// sum puts a checksum beside the binary.
func (s *service) sum(of string) {
	s.t.Helper()
	b, err := os.ReadFile(of)
	if err != nil {
		s.t.Fatal(err)
	}
	line := fmt.Sprintf("%x  %s\n", sha256.Sum256(b), filepath.Base(of))
	if err := os.WriteFile(s.config.Exe+".sha256", []byte(line), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// TestPreflightThatFailsCostsNothing: nothing was started, the old process
// serves on and says what was found, and the next good upgrade works.
func TestPreflightThatFailsCostsNothing(t *testing.T) {
	t.Parallel()
	chmod := func(mode os.FileMode) func(string) error {
		return func(p string) error { return os.Chmod(p, mode) }
	}
	tests := map[string]struct {
		preflight string
		make      func(path string) error
		says      string
		root      bool
	}{
		"error":                {"bad", good, "the preflight says no", false},
		"panic":                {"panic", good, "it panicked: a fault was planted here", false},
		"hangs":                {"hang", good, "no answer in 3s: limit reached", false},
		"waits for ctx":        {"wait", good, "no answer in 3s: limit reached", false},
		"overwritten in place": {"overwrite", own, "it was changed after it was opened", false},
		"writable by a group":  {"owner", with(own, chmod(0o775)), "writable by others (mode 0775): chmod go-w it", false},
		"writable by all":      {"owner", with(own, chmod(0o757)), "writable by others (mode 0757): chmod go-w it", false},
		"of another user":      {"owner", with(own, func(p string) error { return os.Chown(p, 65534, 0) }), "belongs to uid 65534", true},
		"no checksum":          {"sum", good, "app.sha256: no such file", false},
		"wrong checksum": {"sum", with(good, func(p string) error {
			return os.WriteFile(strings.TrimSuffix(p, ".new")+".sha256", []byte(strings.Repeat("00", 32)), 0o644)
		}), "its SHA-256 is ", false},
		"another program":  {"program", goCommand, "it is cmd/go of module", false},
		"not a Go program": {"program", func(p string) error { return os.Symlink("/bin/true", p) }, "its build information", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tt.root && os.Geteuid() != 0 {
				t.Skip("to give a file away takes root")
			}
			s := newService(t)
			s.config.Preflight, s.config.Ready = tt.preflight, 3000
			s.start()
			old, from := s.pidfile(), s.mark()
			p := s.probe()
			s.install(tt.make)
			s.config.Faults = []fault{{1, "started", "kill"}} // nothing is
			if s.upgrade() {
				t.Fatal("upgraded")
			}
			err := s.waitAfter(from, "verdict", moved(old, "serving")).str("err")
			want := "upgrader: prepare: " + s.config.Exe + ": preflight: "
			if !strings.HasPrefix(err, want) || !strings.Contains(err, tt.says) {
				t.Errorf("the log says %q, want %q and %q", err, want, tt.says)
			}
			s.serves(old, 1)
			s.install(good)
			s.config.Faults, s.config.Preflight = nil, "good"
			if !s.upgrade() {
				t.Fatal("the next good upgrade failed")
			}
			p.check(t, 0)
		})
	}
}

// TestScriptIsRefusedByAPreflight: what a shell reads later was not checked.
func TestScriptIsRefusedByAPreflight(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.Preflight = "good"
	s.start()
	old, from := s.pidfile(), s.mark()
	s.install(filled("#!/bin/sh\nexec "+self(t)+"\n", 0o755))
	if s.upgrade() {
		t.Fatal("upgraded")
	}
	if err := s.waitAfter(from, "verdict", moved(old, "serving")).str("err"); !strings.Contains(err, errScript.Error()) {
		t.Errorf("the log says %q", err)
	}
	s.serves(old, 1)
}

// TestReadyPreflightsLetAGoodBinaryPass, at each upgrade anew.
func TestReadyPreflightsLetAGoodBinaryPass(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.Preflight = "all"
	s.start()
	for range 2 {
		s.install(own)
		s.sum(s.config.Exe)
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
	}
	old, from := s.pidfile(), s.mark()
	if err := os.WriteFile(s.config.Exe+".sha256", []byte(strings.Repeat("00", 32)+"  app\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if s.upgrade() {
		t.Fatal("upgraded to a binary with another checksum")
	}
	err := s.waitAfter(from, "verdict", moved(old, "serving")).str("err")
	if !strings.Contains(err, "preflight: its SHA-256 is ") {
		t.Errorf("the log says %q", err)
	}
	s.serves(old, 3)
}

// executes returns the inode of the file that a process runs.
func executes(t *testing.T, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	must(t, syscall.Stat(path, &st))
	return st.Ino
}

// TestCheckedFileIsExecuted, not the one that was moved in its place while it
// was checked, which is bad. That is the next attempt's.
func TestCheckedFileIsExecuted(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.Preflight = "swap"
	s.start()
	s.install(own)
	checked := executes(t, s.config.Exe)
	bad := s.config.Exe + ".bad"
	must(t, filled("#!/bin/sh\nexit 1\n", 0o755)(bad))
	s.config.Swap = [2]string{bad, s.config.Exe}
	from := s.mark()
	if !s.upgrade() {
		t.Fatal("what was checked was not executed")
	}
	r := s.waitAfter(from, "preflight", func(r record) bool { return r.str("msg") == "preflight" })
	if !strings.HasPrefix(r.str("path"), "/proc/self/fd/") || r.str("name") != s.config.Exe {
		t.Errorf("the check got %q, which leads to %q", r.str("path"), r.str("name"))
	}
	now := s.pidfile()
	if got := executes(t, fmt.Sprintf("/proc/%d/exe", now)); got != checked {
		t.Errorf("inode %d runs, %d was checked", got, checked)
	}
	if s.upgrade() { // its own path again, and the file that lies there now
		t.Fatal("the bad file was executed")
	}
	s.serves(now, 2)
	s.config.Preflight = "good"
	s.install(good)
	if !s.upgrade() {
		t.Fatal("the next good upgrade failed")
	}
}

// TestLinkThatIsFlippedDuringACheck leads the next upgrade to where it leads
// then, and this one to what was checked.
func TestLinkThatIsFlippedDuringACheck(t *testing.T) {
	t.Parallel()
	s := newService(t)
	copyOf(t, s.dir+"/v1/server")
	copyOf(t, s.dir+"/v2/server")
	must(t, os.Symlink("v1", s.dir+"/current"))
	must(t, os.Symlink("v2", s.dir+"/next"))
	s.config.Preflight, s.config.Swap = "swap", [2]string{s.dir + "/next", s.dir + "/current"}
	s.startAt(s.dir, s.dir+"/current/server", s.dir+"/current/server")
	if !s.upgrade() {
		t.Fatal("upgrade failed")
	}
	s.runs(s.dir + "/v1/server")
	s.config.Preflight = "good"
	if !s.upgrade() {
		t.Fatal("the next upgrade failed")
	}
	s.runs(s.dir + "/v2/server")
}

// threadNames returns the names of a process's threads.
func threadNames(t *testing.T, pid int) map[string]bool {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/comm", pid))
	must(t, err)
	found := map[string]bool{}
	for _, path := range threads {
		if name, err := os.ReadFile(path); err == nil { // else it has ended
			found[strings.TrimSuffix(string(name), "\n")] = true
		}
	}
	return found
}

// holds counts the descriptors of a process that lead to a file.
func holds(t *testing.T, pid int, path string) (n int) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	must(t, err)
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && to == path {
			n++
		}
	}
	return n
}

// TestProcessThatWasExecutedByItsDescriptor is like any other, in a chain of
// generations: its name, its executable, the arguments, its descriptors.
func TestProcessThatWasExecutedByItsDescriptor(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"server": "server", "a-server-with-a-long-name": "a-server-with-a"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			path := filepath.Join(s.dir, name)
			copyOf(t, path)
			s.config.Preflight, s.config.Chdir = "good", "/"
			s.startAt(s.dir, "./"+name, path)
			for generation := 2; generation <= 5; generation++ {
				if generation == 4 { // and one that was replaced runs on
					copyOf(t, path+".new")
					must(t, os.Rename(path+".new", path))
				}
				if !s.upgrade() {
					t.Fatal("upgrade failed")
				}
				now := s.pidfile()
				s.runs(path)
				if got := threadNames(t, now); len(got) != 1 || !got[want] {
					t.Errorf("generation %d: its threads are called %v, want %s", generation, got, want)
				}
				if n := holds(t, now, path); n > 0 {
					t.Errorf("generation %d: %d descriptors of its own executable", generation, n)
				}
				if got, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", now)); err != nil || string(got) != path+"\x00" {
					t.Errorf("generation %d: its arguments are %q, %v", generation, got, err)
				}
				s.serves(now, generation)
			}
		})
	}
}

// TestPreflightAmongManyDescriptors: no socket is taken for the executable, nor
// it for one.
func TestPreflightAmongManyDescriptors(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.Preflight, s.config.Many = "good", 300
	s.start()
	for generation := 2; generation <= 4; generation++ {
		from := s.mark()
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
		r := s.waitAfter(from, "many", func(r record) bool { return r.str("msg") == "many" })
		if r.num("listeners") != 300 || r.num("files") != 300 || r.num("same") != 600 {
			t.Errorf("generation %d: %v", generation, r)
		}
		s.serves(s.pidfile(), generation)
	}
}

// TestTermDuringAPreflightStopsTheService at once.
func TestTermDuringAPreflightStopsTheService(t *testing.T) {
	t.Parallel()
	for _, preflight := range []string{"wait", "hang"} {
		t.Run(preflight, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.config.Preflight, s.config.Ready = preflight, 10*60*1000
			s.start()
			old := s.pidfile()
			s.signal(old, syscall.SIGUSR1)
			s.waitFor("preflight", func(r record) bool { return r.str("msg") == "preflight" })
			s.signal(old, syscall.SIGTERM)
			s.allGone()
			if _, err := os.Lstat(s.config.PIDFile); err == nil {
				t.Error("the pidfile is left behind")
			}
		})
	}
}
