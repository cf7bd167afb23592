//go:build unix

package upgrader

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

type preflight = func(ctx context.Context, path string) error

// checkedBy asks one about this test binary, as an attempt does.
func checkedBy(ctx context.Context, t *testing.T, p preflight, limit time.Duration) error {
	t.Helper()
	o, err := Options{Preflight: p, ReadyTimeout: limit}.withDefaults()
	must(t, err)
	i, err := openImage(self(t))
	must(t, err)
	defer i.Close()
	return newUpgrader(o).preflight(ctx, i)
}

// TestAnswersOfAPreflight, at virtual time: it has a limit, and the caller can
// give up.
func TestAnswersOfAPreflight(t *testing.T) {
	no := errors.New("no")
	gaveUp := errors.New("the caller gave up")
	const limit, patience = time.Minute, 10 * time.Second
	tests := []struct {
		name  string
		p     func(release <-chan struct{}) preflight
		until time.Duration // the caller's patience; 0: endless
		want  error
		after time.Duration
	}{
		{"yes", func(<-chan struct{}) preflight {
			return func(context.Context, string) error { return nil }
		}, 0, nil, 0},
		{"no", func(<-chan struct{}) preflight {
			return func(context.Context, string) error { return no }
		}, 0, no, 0},
		{"yes, in time", func(<-chan struct{}) preflight {
			return func(context.Context, string) error { time.Sleep(limit - 1); return nil }
		}, 0, nil, limit - 1},
		{"heeds its limit", func(<-chan struct{}) preflight {
			return func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
		}, 0, ErrTimeout, limit},
		{"hangs", func(release <-chan struct{}) preflight {
			return func(context.Context, string) error { <-release; return nil }
		}, 0, ErrTimeout, limit},
		{"ends its goroutine", func(<-chan struct{}) preflight {
			return func(context.Context, string) error { runtime.Goexit(); return nil }
		}, 0, ErrTimeout, limit},
		{"heeds its caller", func(<-chan struct{}) preflight {
			return func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
		}, patience, gaveUp, patience},
		{"hangs, and its caller gives up", func(release <-chan struct{}) preflight {
			return func(context.Context, string) error { <-release; return nil }
		}, patience, gaveUp, patience},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := openFDs(t)
			bubbles(t, func(t *testing.T) {
				ctx := t.Context()
				if tt.until > 0 {
					c, cancel := context.WithTimeoutCause(ctx, tt.until, gaveUp)
					defer cancel()
					ctx = c
				}
				release := make(chan struct{})
				defer synctest.Wait() // what was given up ends, too
				defer close(release)
				began := time.Now()
				err := checkedBy(ctx, t, tt.p(release), limit)
				if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
					t.Errorf("%v, want %v", err, tt.want)
				}
				if took := time.Since(began); took != tt.after {
					t.Errorf("after %v, want %v", took, tt.after)
				}
			})
			wantNoMoreFDs(t, before)
		})
	}
}

// TestPreflightThatPanics fails the attempt, not the process that serves.
func TestPreflightThatPanics(t *testing.T) {
	err := checkedBy(t.Context(), t, func(context.Context, string) error {
		header := make([]byte, 0, 4)
		_ = header[:5] // as a parser does that trusts its file
		return nil
	}, time.Minute)
	wantText(t, err, "it panicked: runtime error: slice bounds out of range")
}

// TestUpgradeThatIsCanceledDuringItsPreflight has started nothing.
func TestUpgradeThatIsCanceledDuringItsPreflight(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	u := newAlone(t, Options{Executable: self(t), Preflight: func(context.Context, string) error {
		began <- struct{}{}
		<-release
		return nil
	}})
	settle(t, u)
	before := openFDs(t)
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-began; cancel() }()
		err := u.Upgrade(ctx)
		var se *SuccessorError
		if !errors.Is(err, context.Canceled) || !errors.As(err, &se) || se.Phase != PhasePrepare || se.PID != 0 {
			t.Fatalf("%v, want that it was canceled and nothing was started", err)
		}
	}
	close(release)
	wantNoMoreFDs(t, before)
}

// TestStopDuringAPreflight does not wait for it.
func TestStopDuringAPreflight(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	u := newAlone(t, Options{Executable: self(t), Preflight: func(context.Context, string) error {
		close(began)
		<-release
		return nil
	}})
	settle(t, u)
	verdict := make(chan error, 1)
	go func() { verdict <- u.Upgrade(context.Background()) }()
	<-began
	u.Stop()
	if err := <-verdict; !errors.Is(err, ErrStopped) {
		t.Errorf("%v, want %v", err, ErrStopped)
	}
}

func TestPreflightsStopAtTheFirstError(t *testing.T) {
	var called []string
	say := func(name string, err error) preflight {
		return func(_ context.Context, path string) error {
			called = append(called, name+path)
			return err
		}
	}
	no := errors.New("no")
	err := Preflights(say("a", nil), say("b", no), say("c", nil))(t.Context(), "/x")
	if !errors.Is(err, no) || !slices.Equal(called, []string{"a/x", "b/x"}) {
		t.Errorf("%v after %q", err, called)
	}
	must(t, Preflights()(t.Context(), "/x"))
}

// TestPreflightOwner: nobody but root and this process's user can change what
// runs, or put another file in its place.
func TestPreflightOwner(t *testing.T) {
	chmod := func(t *testing.T, path string, mode os.FileMode) { t.Helper(); must(t, os.Chmod(path, mode)) }
	giveAway := func(t *testing.T, path string) {
		t.Helper()
		if os.Geteuid() != 0 {
			t.Skip("to give a file away takes root")
		}
		must(t, os.Chown(path, 65534, 0))
	}
	tests := []struct {
		name  string
		place func(t *testing.T, dir string) // dir/bin/app is there
		text  string                         // empty: good
	}{
		{"good", func(*testing.T, string) {}, ""},
		{"readable by its owner only", func(t *testing.T, dir string) { chmod(t, dir+"/bin/app", 0o700) }, ""},
		{"writable by nobody", func(t *testing.T, dir string) { chmod(t, dir+"/bin/app", 0o555) }, ""},
		{"writable by its group", func(t *testing.T, dir string) { chmod(t, dir+"/bin/app", 0o775) }, "the file DIR/bin/app is writable by others (mode 0775)"},
		{"writable by others", func(t *testing.T, dir string) { chmod(t, dir+"/bin/app", 0o757) }, "(mode 0757): chmod go-w it"},
		{"of another user", func(t *testing.T, dir string) { giveAway(t, dir+"/bin/app") }, "the file DIR/bin/app belongs to uid 65534"},
		{"directory writable by its group", func(t *testing.T, dir string) { chmod(t, dir+"/bin", 0o775) }, "the directory DIR/bin is writable"},
		{"directory writable by others", func(t *testing.T, dir string) { chmod(t, dir+"/bin", 0o757) }, "the directory DIR/bin is writable"},
		{"directory of another user", func(t *testing.T, dir string) { giveAway(t, dir+"/bin") }, "the directory DIR/bin belongs to uid 65534"},
		{"directory with the sticky bit", func(t *testing.T, dir string) { chmod(t, dir+"/bin", 0o777|os.ModeSticky) }, ""},
		{"directory above writable", func(t *testing.T, dir string) { chmod(t, dir, 0o777) }, "the directory DIR is writable"},
		{"directory above of another user", func(t *testing.T, dir string) { giveAway(t, dir) }, "the directory DIR belongs to uid 65534"},
		{"the sticky bit of a file is none", func(t *testing.T, dir string) { chmod(t, dir+"/bin/app", 0o777|os.ModeSticky) }, "the file DIR/bin/app is writable"},
		{"a link from a good directory", func(t *testing.T, dir string) { linked(t, dir, 0o755) }, ""},
		{"a link from a directory that others can write to", func(t *testing.T, dir string) { linked(t, dir, 0o777) }, "the directory DIR/links is writable"},
		{"a link to a directory that others can write to", func(t *testing.T, dir string) {
			linked(t, dir, 0o755)
			chmod(t, dir+"/v1", 0o777)
		}, "the directory DIR/v1 is writable"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, err := filepath.EvalSymlinks(t.TempDir())
			must(t, err)
			must(t, os.Mkdir(dir+"/bin", 0o755))
			copyTo(t, dir+"/bin/app", self(t), 4096, nil)
			tt.place(t, dir)
			path := dir + "/bin/app"
			if strings.Contains(tt.name, "a link") {
				path = dir + "/links/app"
			}
			i, err := openImage(path)
			must(t, err)
			defer i.Close()
			o, err := Options{Preflight: PreflightOwner}.withDefaults()
			must(t, err)
			for _, err := range []error{newUpgrader(o).preflight(t.Context(), i), PreflightOwner(t.Context(), path)} {
				if tt.text == "" {
					must(t, err)
				} else {
					wantText(t, err, strings.ReplaceAll(tt.text, "DIR", dir))
				}
				if strings.HasPrefix(tt.name, "a link from") {
					break // without an Upgrader nobody says where the link is
				}
			}
		})
	}
}

// linked puts a link to dir/v1/app into a directory of that mode.
func linked(t *testing.T, dir string, mode os.FileMode) {
	t.Helper()
	must(t, os.Mkdir(dir+"/links", 0o755))
	must(t, os.Mkdir(dir+"/v1", 0o755))
	copyTo(t, dir+"/v1/app", dir+"/bin/app", -1, nil)
	must(t, os.Symlink("../v1/app", dir+"/links/app"))
	must(t, os.Chmod(dir+"/links", mode))
}

func TestPreflightSHA256(t *testing.T) {
	const content = "a program"
	right := fmt.Sprintf("%x", sha256.Sum256([]byte(content)))
	wrong := fmt.Sprintf("%x", sha256.Sum256(nil))
	no := errors.New("no")
	for name, tt := range map[string]struct {
		file string                                // of the checksum
		want func(context.Context) (string, error) // nil: that
		text string                                // empty: good
	}{
		"as sha256sum writes it":        {right + "  app\n", nil, ""},
		"of a binary file":              {right + " *app\n", nil, ""},
		"bare":                          {right, nil, ""},
		"upper case":                    {strings.ToUpper(right) + "\n", nil, ""},
		"wrong":                         {wrong + "  app\n", nil, "its SHA-256 is " + right + ", want " + wrong},
		"missing":                       {"", nil, "app.sha256: no such file"},
		"empty":                         {"\n", nil, "app.sha256: want one line"},
		"of several files":              {wrong + "  other\n" + right + "  app\n", nil, "want one line"},
		"too short":                     {right[1:], nil, "want 64 hexadecimal digits"},
		"of another kind":               {right[:40] + "  app\n", nil, "is not a SHA-256"},
		"not hexadecimal":               {strings.Repeat("x", 64), nil, "is not a SHA-256"},
		"endless":                       {strings.Repeat("0", 1<<20), nil, "is not a SHA-256"},
		"from a function":               {"", func(context.Context) (string, error) { return right, nil }, ""},
		"wrong, from a function":        {right, func(context.Context) (string, error) { return wrong, nil }, "want " + wrong},
		"a function that does not know": {right, func(context.Context) (string, error) { return "", no }, "no"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app")
			must(t, os.WriteFile(path, []byte(content), 0o755))
			if tt.file != "" {
				must(t, os.WriteFile(path+".sha256", []byte(tt.file), 0o644))
			}
			err := PreflightSHA256(tt.want)(t.Context(), path)
			if tt.text == "" {
				must(t, err)
			} else {
				wantText(t, err, tt.text)
			}
		})
	}
}

// TestSumEndsWithItsContext: a large file on a slow disk holds up nobody.
func TestSumEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app")
	must(t, os.WriteFile(path, nil, 0o755))
	must(t, os.Truncate(path, 1<<40)) // it would take an hour
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	want := func(context.Context) (string, error) {
		time.AfterFunc(time.Millisecond, func() { cancel(reason) })
		return strings.Repeat("0", 64), nil
	}
	if err := PreflightSHA256(want)(ctx, path); !errors.Is(err, reason) {
		t.Errorf("%v, want %v", err, reason)
	}
	if err := PreflightSHA256(want)(ctx, path+".none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want that there is no such file", err)
	}
}

// TestPreflightProgram knows this program and no other.
func TestPreflightProgram(t *testing.T) {
	must(t, PreflightProgram(t.Context(), self(t)))
	other, err := exec.LookPath("go")
	must(t, err)
	wantText(t, PreflightProgram(t.Context(), other), `it is cmd/go of module "", this process is github.com/go-handover/handover/upgrader.test of module "github.com/go-handover/handover"`)
	dir := t.TempDir()
	copyTo(t, dir+"/half", self(t), 4096, nil)
	must(t, os.WriteFile(dir+"/text", []byte("text"), 0o755))
	for _, path := range []string{"/half", "/text"} {
		wantText(t, PreflightProgram(t.Context(), dir+path), "its build information: ")
	}
	if err := PreflightProgram(t.Context(), dir+"/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want that there is no such file", err)
	}
}
