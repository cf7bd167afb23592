//go:build linux

package upgrader

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// install lets put make a file, and moves it in the place of the binary by rename.
func (s *service) install(put func(path string) error) {
	s.t.Helper()
	tmp := s.config.Exe + ".new"
	_ = os.RemoveAll(tmp)
	if put == nil {
		_ = os.RemoveAll(s.config.Exe)
		return
	}
	if err := put(tmp); err != nil {
		s.t.Fatal(err)
	}
	if fi, err := os.Lstat(s.config.Exe); err == nil && fi.IsDir() {
		_ = os.RemoveAll(s.config.Exe)
	}
	if fi, err := os.Lstat(tmp); err == nil && fi.IsDir() {
		_ = os.RemoveAll(s.config.Exe)
	}
	if err := os.Rename(tmp, s.config.Exe); err != nil {
		s.t.Fatal(err)
	}
}

func filled(text string, mode os.FileMode) func(string) error {
	return func(path string) error { return os.WriteFile(path, []byte(text), mode) }
}

// good is this test binary.
func good(path string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return os.Symlink(self, path)
}

// part copies the first bytes of this test binary, changed by edit.
func part(size int, edit func([]byte)) func(string) error {
	return func(path string) error {
		self, err := os.Open("/proc/self/exe")
		if err != nil {
			return err
		}
		defer self.Close()
		b := make([]byte, size)
		if _, err := io.ReadFull(self, b); err != nil {
			return err
		}
		if edit != nil {
			edit(b)
		}
		return os.WriteFile(path, b, 0o755)
	}
}

// TestBadBinaryCostsNothing: whatever lies in the place of the binary, the old
// process serves on, says what it found, and the next good upgrade works.
func TestBadBinaryCostsNothing(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		make  func(string) error
		phase Phase
		says  string
	}{
		"missing":               {nil, PhasePrepare, "no such file"},
		"directory":             {func(p string) error { return os.Mkdir(p, 0o755) }, PhasePrepare, "directory"},
		"not executable":        {filled("#!/bin/sh\n", 0o644), PhasePrepare, "chmod +x"},
		"empty":                 {filled("", 0o755), PhasePrepare, "empty"},
		"garbage":               {filled("neither here nor there", 0o755), PhasePrepare, "neither an ELF file nor a script"},
		"wrong architecture":    {part(4096, func(b []byte) { b[18] ^= 0x55 }), PhasePrepare, "another machine"},
		"truncated":             {part(4096, nil), PhaseHello, "it ended"},
		"script of no shell":    {filled("#!/nonexistent/shell\n", 0o755), PhaseStart, "no such file"},
		"exits at once":         {filled("#!/bin/sh\nexit 0\n", 0o755), PhaseHello, "exit status 0"},
		"knows nothing of us":   {filled("#!/bin/sh\nexec sleep 1000\n", 0o755), PhaseHello, "limit reached"},
		"starts another server": {wrapper, PhaseHello, "must exec"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t).start()
			old, from := s.pidfile(), s.mark()
			p := s.probe()
			s.install(tt.make)
			if s.upgrade() {
				t.Fatal("upgraded")
			}
			err := s.waitAfter(from, "verdict", moved(old, "serving")).str("err")
			for _, want := range []string{"upgrader: " + string(tt.phase) + ": ", s.config.Exe, tt.says} {
				if !strings.Contains(err, want) {
					t.Errorf("the log says %q, want %q in it", err, want)
				}
			}
			s.serves(old, 1)
			s.zombies(old)
			s.install(good)
			if !s.upgrade() {
				t.Fatal("the next good upgrade failed")
			}
			p.check(t, 0)
		})
	}
}

// wrapper starts the server as its child instead of executing it.
func wrapper(path string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return os.WriteFile(path, fmt.Appendf(nil, "#!/bin/sh\n%s\nexit $?\n", self), 0o755)
}

// TestBinaryBeingWritten: exec refuses a file that somebody has open for
// writing. A deploy that is about to finish is waited for, a longer one is an
// error.
func TestBinaryBeingWritten(t *testing.T) {
	t.Parallel()
	s := newService(t).start()
	old, from := s.pidfile(), s.mark()
	copied := s.config.Exe + ".copy"
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", self, copied).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.install(func(path string) error { return os.Rename(copied, path) })
	w, err := os.OpenFile(s.config.Exe, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if s.upgrade() {
		t.Fatal("upgraded")
	}
	text := s.waitAfter(from, "verdict", moved(old, "serving")).str("err")
	if !strings.Contains(text, "still being written") || !strings.Contains(text, s.config.Exe) {
		t.Errorf("the log says %q", text)
	}
	s.serves(old, 1)

	from = s.mark()
	s.signal(old, syscall.SIGUSR1)
	s.waitAfter(from, "attempt", moved(old, "upgrading"))
	if err := w.Close(); err != nil { // the deploy is done
		t.Fatal(err)
	}
	s.waitAfter(from, "upgrade", moved(old, "draining"))
}

// startAt runs the program by another name, in another directory.
func (s *service) startAt(dir, argv0, path string) *service {
	s.t.Helper()
	s.command = func() *exec.Cmd {
		cmd := exec.Command(argv0)
		cmd.Path, cmd.Err = path, nil
		cmd.Dir = dir
		return cmd
	}
	s.config.Exe = ""
	return s.start()
}

// copyOf makes a binary of its own: its path is the version that runs.
func copyOf(t *testing.T, path string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", self, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// runs asserts which file the committed process executes.
func (s *service) runs(want string) {
	s.t.Helper()
	got, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", s.pidfile()))
	if err != nil {
		s.t.Fatal(err)
	}
	if got != want {
		s.t.Errorf("the server runs %s, want %s", got, want)
	}
}

// TestRightBinaryRuns: the successor is what lies now at the path by which the
// first process was invoked, however that was.
func TestRightBinaryRuns(t *testing.T) {
	t.Parallel()
	upgrade := func(t *testing.T, s *service) {
		t.Helper()
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
	}
	t.Run("flipped symlink", func(t *testing.T) {
		t.Parallel()
		s := newService(t)
		copyOf(t, s.dir+"/v1/server")
		copyOf(t, s.dir+"/v2/server")
		flip := func(to string) {
			_ = os.Remove(s.dir + "/tmp")
			if err := os.Symlink(to, s.dir+"/tmp"); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(s.dir+"/tmp", s.dir+"/current"); err != nil {
				t.Fatal(err)
			}
		}
		flip("v1")
		s.startAt(s.dir, s.dir+"/current/server", s.dir+"/current/server")
		flip("v2")
		upgrade(t, s)
		s.runs(s.dir + "/v2/server")
		flip("v1")
		upgrade(t, s)
		s.runs(s.dir + "/v1/server")
	})
	t.Run("renamed away and replaced", func(t *testing.T) {
		t.Parallel()
		s := newService(t)
		copyOf(t, s.dir+"/server")
		s.startAt(s.dir, s.dir+"/server", s.dir+"/server")
		for range 3 {
			copyOf(t, s.dir+"/server.new")
			if err := os.Rename(s.dir+"/server", s.dir+"/server.old"); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(s.dir+"/server.new", s.dir+"/server"); err != nil {
				t.Fatal(err)
			}
			upgrade(t, s)
			s.runs(s.dir + "/server")
		}
	})
	t.Run("deleted", func(t *testing.T) {
		t.Parallel()
		s := newService(t)
		copyOf(t, s.dir+"/server")
		s.startAt(s.dir, s.dir+"/server", s.dir+"/server")
		old := s.pidfile()
		if err := os.Remove(s.dir + "/server"); err != nil {
			t.Fatal(err)
		}
		if s.upgrade() {
			t.Fatal("upgraded to a deleted binary")
		}
		s.serves(old, 1)
		copyOf(t, s.dir+"/server")
		upgrade(t, s)
		s.runs(s.dir + "/server")
	})
	t.Run("relative argv[0] and chdir after start", func(t *testing.T) {
		t.Parallel()
		s := newService(t)
		copyOf(t, s.dir+"/bin/server")
		s.config.Chdir = "/"
		s.startAt(s.dir, "bin/server", s.dir+"/bin/server")
		upgrade(t, s)
		upgrade(t, s)
		s.runs(s.dir + "/bin/server")
	})
	t.Run("through PATH", func(t *testing.T) {
		t.Parallel()
		s := newService(t)
		copyOf(t, s.dir+"/bin/server-of-this-test")
		s.env = []string{"PATH=" + s.dir + "/bin:" + os.Getenv("PATH")}
		s.config.Chdir = "/"
		s.startAt(s.dir, "server-of-this-test", s.dir+"/bin/server-of-this-test")
		upgrade(t, s)
		s.runs(s.dir + "/bin/server-of-this-test")
	})
	t.Run("argv[0] says something else", func(t *testing.T) {
		t.Parallel()
		s := newService(t)
		copyOf(t, s.dir+"/server")
		s.startAt(s.dir, "sh", s.dir+"/server")
		upgrade(t, s)
		s.runs(s.dir + "/server")
	})
	t.Run("working directory deleted", func(t *testing.T) {
		t.Parallel()
		s := newService(t)
		copyOf(t, s.dir+"/server")
		wd := s.dir + "/gone"
		if err := os.Mkdir(wd, 0o755); err != nil {
			t.Fatal(err)
		}
		s.startAt(wd, s.dir+"/server", s.dir+"/server")
		if err := os.Remove(wd); err != nil {
			t.Fatal(err)
		}
		upgrade(t, s)
		upgrade(t, s)
		s.runs(s.dir + "/server")
	})
}

// TestClosedStdioIsNull: with standard streams closed the successor finds
// /dev/null there, not a socket.
func TestClosedStdioIsNull(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.CloseStdio = true
	s.start()
	for range 3 {
		from := s.mark()
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
		r := s.waitAfter(from, "stdio", func(r record) bool { return r.str("msg") == "stdio" })
		if r.str("stdin") != os.DevNull || r.str("stdout") != os.DevNull {
			t.Errorf("the successor started with %v and %v", r["stdin"], r["stdout"])
		}
	}
}
