//go:build unix

package upgrader

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kardianos/osext"
)

// self is the running test binary, symbolic links resolved.
func self(t *testing.T) string {
	t.Helper()
	path, err := osext.Executable()
	must(t, err)
	return path
}

// copyTo copies the beginning of a file, n bytes or all if n is negative, after
// edit has changed it.
func copyTo(t *testing.T, path, from string, n int, edit func([]byte)) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	if n >= 0 {
		b = b[:n]
	}
	if edit != nil {
		edit(b)
	}
	must(t, os.WriteFile(path, b, 0o755))
}

// TestExecutableIsAsInvoked, made absolute, as long as the running file is what
// lies there: argv[0] is only what the parent claims.
func TestExecutableIsAsInvoked(t *testing.T) {
	running := self(t)
	dir, name := filepath.Dir(running), filepath.Base(running)
	links := t.TempDir()
	must(t, os.Mkdir(filepath.Join(links, "bin"), 0o755))
	link := filepath.Join(links, "bin", "current")
	must(t, os.Symlink(running, link))
	must(t, os.Symlink("current", filepath.Join(links, "bin", "twice")))
	must(t, os.Symlink("/bin/sh", filepath.Join(links, "bin", "other")))
	must(t, os.Symlink("bin", filepath.Join(links, "dir")))
	tests := []struct {
		name, wd, path, argv0, want string
	}{
		{"absolute", "/", "", running, running},
		{"not clean", "/", "", dir + "/./" + name, running},
		{"relative", dir, "", "./" + name, running},
		{"relative, further up", links, "", "bin/current", link},
		{"through PATH", "/", "/nowhere:" + filepath.Join(links, "bin"), "current", link},
		{"through a relative PATH", links, "bin", "current", link},
		{"through a dot in PATH", filepath.Join(links, "bin"), ".", "current", link},
		{"a symbolic link is kept", "/", "", link, link},
		{"and one to one", "/", "", filepath.Join(links, "bin", "twice"), filepath.Join(links, "bin", "twice")},
		{"and one to its directory", "/", "", filepath.Join(links, "dir", "current"), filepath.Join(links, "dir", "current")},
		{"spoofed: another program", "/", "", "/bin/sh", running},
		{"spoofed: a link to another program", "/", "", filepath.Join(links, "bin", "other"), running},
		{"spoofed: another program in PATH", "/", "/bin:/usr/bin", "sh", running},
		{"spoofed: a directory", "/", "", links, running},
		{"spoofed: a title", "/", "", "server: worker process", running},
		{"spoofed: a login shell", "/", "/bin", "-sh", running},
		{"spoofed: nothing", "/", "", "", running},
		{"not there", "/", "", "/nowhere/server", running},
		{"relative to where nothing is", links, "", "./server", running},
		{"not in PATH", "/", "/nowhere", "current", running},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(tt.wd)
			t.Setenv("PATH", tt.path)
			e, err := resolveExecutable("", tt.argv0)
			if err != nil || e.path() != tt.want {
				t.Errorf("%s, %v; want %s", e.path(), err, tt.want)
			}
			if e.dir("") != tt.wd {
				t.Errorf("the directory is %s, want %s", e.dir(""), tt.wd)
			}
		})
	}
}

// TestExecutableThatWasReplaced since it started is still what was invoked, and
// one that was renamed is found under its new name.
func TestExecutableThatWasReplaced(t *testing.T) {
	dir := t.TempDir()
	app, moved, link := filepath.Join(dir, "app"), filepath.Join(dir, "app.old"), filepath.Join(dir, "link")
	must(t, os.WriteFile(app, []byte("new"), 0o755)) // another file than that of the process
	must(t, os.Symlink("app", link))
	for _, argv0 := range []string{app, link} {
		if got := invoked(argv0, app); got != argv0 {
			t.Errorf("%s, replaced: %q", argv0, got)
		}
	}
	must(t, os.WriteFile(moved, []byte("old"), 0o755))
	if got := invoked(app, moved); got != "" {
		t.Errorf("renamed: %q", got)
	}
	must(t, os.Remove(app))
	if got := invoked(app, app); got != "" {
		t.Errorf("deleted: %q", got)
	}
	must(t, os.Link(moved, app))
	if got := invoked(app, moved); got != app {
		t.Errorf("a second name of the same file: %q", got)
	}
}

// TestFlippedLinkTakesEffect: it is the path that is kept, not what it meant.
func TestFlippedLinkTakesEffect(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "current")
	must(t, os.Symlink(self(t), link))
	e, err := resolveExecutable("", link)
	must(t, err)
	must(t, checkExecutable(e.path()))
	must(t, os.Symlink(filepath.Join(dir, "v2"), link+".next"))
	must(t, os.Rename(link+".next", link))
	if err := checkExecutable(e.path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want that v2 is not there", err)
	}
	copyTo(t, filepath.Join(dir, "v2"), self(t), -1, nil)
	must(t, checkExecutable(e.path()))
}

func TestConfiguredExecutable(t *testing.T) {
	wd := t.TempDir()
	t.Chdir(wd)
	for configured, want := range map[string]string{
		"/srv/app":   "/srv/app",
		"/srv/./app": "/srv/app",
		"app":        filepath.Join(wd, "app"), // not looked up in PATH
		"bin/app":    filepath.Join(wd, "bin/app"),
	} {
		e, err := resolveExecutable(configured, self(t))
		if err != nil || e.path() != want { // it need not be there yet
			t.Errorf("%s: %s, %v; want %s", configured, e.path(), err, want)
		}
	}
}

func TestDirectoryThatWasDeleted(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	must(t, os.Mkdir(gone, 0o755))
	t.Chdir(gone)
	before, err := resolveExecutable("", self(t))
	must(t, err)
	if before.dir("") != gone || before.dir("/srv") != "/srv" {
		t.Errorf("the directory is %q, or %q", before.dir(""), before.dir("/srv"))
	}
	must(t, os.Remove(gone))
	if got := before.dir(""); got != "" {
		t.Errorf("deleted later: %q, want wherever the process is", got)
	}
	if got := before.dir("/srv"); got != "/srv" {
		t.Errorf("Options.Dir is %q", got)
	}
	if _, err := os.Getwd(); err == nil {
		t.Skip("this system finds the way back to a directory that was deleted")
	}
	for _, argv0 := range []string{self(t), "./app", "app"} {
		e, err := resolveExecutable("", argv0)
		if err != nil || e.path() != self(t) || e.dir("") != "" {
			t.Errorf("%s: %s in %q, %v", argv0, e.path(), e.dir(""), err)
		}
	}
	if e, err := resolveExecutable("app", self(t)); err == nil {
		t.Errorf("a relative Options.Executable is %s", e.path())
	}
}

func TestFileInThePlaceOfTheDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	must(t, os.WriteFile(path, nil, 0o600))
	if got := (executable{initial: path}).dir(""); got != "" {
		t.Errorf("%q", got)
	}
}

// TestCheckExecutable finds what exec would refuse, and what it would not.
func TestCheckExecutable(t *testing.T) {
	running := self(t)
	write := func(text string, mode os.FileMode) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			t.Helper()
			must(t, os.WriteFile(path, []byte(text), 0o600))
			must(t, os.Chmod(path, mode))
		}
	}
	part := func(n int, edit func([]byte)) func(*testing.T, string) {
		return func(t *testing.T, path string) { t.Helper(); copyTo(t, path, running, n, edit) }
	}
	tests := []struct {
		name  string
		place func(*testing.T, string)
		cause error // nil: good
		text  string
	}{
		{"good", part(-1, nil), nil, ""},
		{"a link to a good one", func(t *testing.T, path string) { must(t, os.Symlink(running, path)) }, nil, ""},
		{"a script", write("#!/bin/sh\nexec server\n", 0o755), nil, ""},
		{"the shortest script", write("#!", 0o755), nil, ""},
		{"executable for its owner only: a script", write("#!/bin/sh\n", 0o700), nil, ""},
		{"truncated: exec decides", part(100, nil), nil, ""},
		{"truncated after its header", part(20, nil), nil, ""},
		{"truncated in its header", part(10, nil), syscall.ENOEXEC, "another machine"},
		{"missing", func(*testing.T, string) {}, fs.ErrNotExist, ""},
		{"a dangling link", func(t *testing.T, path string) { must(t, os.Symlink("nowhere", path)) }, fs.ErrNotExist, ""},
		{"below a file", func(t *testing.T, path string) {
			must(t, os.Remove(filepath.Dir(path)))
			must(t, os.WriteFile(filepath.Dir(path), nil, 0o755))
		}, syscall.ENOTDIR, ""},
		{"a directory", func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o755)) }, syscall.EISDIR, "directory"},
		{"a link to a directory", func(t *testing.T, path string) { must(t, os.Symlink("/", path)) }, syscall.EISDIR, "directory"},
		{"a fifo", func(t *testing.T, path string) { must(t, syscall.Mkfifo(path, 0o755)) }, syscall.EACCES, "not a regular file"},
		{"a device", func(t *testing.T, path string) { must(t, os.Symlink(os.DevNull, path)) }, syscall.EACCES, "not a regular file"},
		{"not executable", write("#!/bin/sh\n", 0o644), syscall.EACCES, "chmod +x"},
		{"empty", write("", 0o755), syscall.ENOEXEC, "empty"},
		{"garbage", write(strings.Repeat("garbage ", 100), 0o755), syscall.ENOEXEC, "neither an ELF file nor a script"},
		{"one byte", write("#", 0o755), syscall.ENOEXEC, "neither an ELF file nor a script"},
		{"for another machine", part(-1, func(b []byte) { b[18]++ }), syscall.ENOEXEC, "another machine"},
		{"of another word size", part(-1, func(b []byte) { b[4] ^= 3 }), syscall.ENOEXEC, "another machine"},
		{"of another byte order", part(-1, func(b []byte) { b[5] ^= 3 }), syscall.ENOEXEC, "another machine"},
	}
	if _, err := os.Stat(selfPath); err != nil {
		t.Skip("what an executable looks like is known on Linux only:", err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "dir", "app")
			must(t, os.Mkdir(filepath.Dir(path), 0o755))
			tt.place(t, path)
			wantCause(t, checkExecutable(path), tt.cause, path, tt.text)
			before := openFDs(t)
			i, err := openImage(path)
			if err == nil {
				must(t, i.Close())
			}
			if cause := tt.cause; cause == nil && strings.HasSuffix(tt.name, "script") {
				wantCause(t, err, errScript, path, "")
			} else {
				wantCause(t, err, cause, path, tt.text)
			}
			wantNoMoreFDs(t, before)
		})
	}
}

// wantCause asserts that an error names the path and what is wrong with it; nil
// is no error.
func wantCause(t *testing.T, err, cause error, path, text string) {
	t.Helper()
	if cause == nil {
		must(t, err)
		return
	}
	var pe *fs.PathError
	if !errors.Is(err, cause) || !errors.As(err, &pe) || pe.Path != path || !strings.Contains(err.Error(), text) {
		t.Errorf("%v, want %v with the path and %q", err, cause, text)
	}
}

// TestRunningFileThatWasDeleted still says what machine this is.
func TestRunningFileThatWasDeleted(t *testing.T) {
	h, err := readHeaderOf(selfPath)
	if err != nil {
		t.Skip(err)
	}
	if !h.isELF() || h.isScript() {
		t.Errorf("%x", h)
	}
}

// TestArgumentsAndEnvironmentOfTheSuccessor: nil means this process's, and empty
// means empty.
func TestArgumentsAndEnvironmentOfTheSuccessor(t *testing.T) {
	t.Setenv("UPGRADER_TEST_SEEN", "1")
	u := newUpgrader(Options{})
	if !slices.Equal(u.args(), os.Args[1:]) || !slices.Contains(u.env(), "UPGRADER_TEST_SEEN=1") {
		t.Errorf("args %q, env %q; want this process's", u.args(), u.env())
	}
	u = newUpgrader(Options{Args: []string{}, Env: []string{}})
	if len(u.args()) > 0 || len(u.env()) > 0 {
		t.Errorf("args %q, env %q; want none", u.args(), u.env())
	}
	u = newUpgrader(Options{Args: []string{"-x"}, Env: []string{"A=B"}})
	if !slices.Equal(u.args(), []string{"-x"}) || !slices.Equal(u.env(), []string{"A=B"}) {
		t.Errorf("args %q, env %q; want those given", u.args(), u.env())
	}
}
