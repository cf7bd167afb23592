//go:build unix

package upgradertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/upgrader"
)

// bySocket is a Spec of serverMain with a control socket.
func bySocket(tb testing.TB, fault string, args ...string) Spec {
	tb.Helper()
	path := SocketPath(tb)
	return Spec{
		Args: append([]string{"-control", path}, args...), Env: []string{"FAULT=" + fault}, ControlSocket: path,
	}
}

// byPIDFile is a Spec of serverMain with a pidfile alone.
func byPIDFile(tb testing.TB, fault string, args ...string) Spec {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "app.pid")
	return Spec{
		Args: append([]string{"-pidfile", path}, args...), Env: []string{"FAULT=" + fault}, PIDFile: path,
	}
}

var contacts = map[string]func(tb testing.TB, fault string, args ...string) Spec{
	"control socket": bySocket, "pidfile": byPIDFile,
}

func TestUpgradeUnderLoadIsClean(t *testing.T) {
	t.Parallel()
	s := Start(t, bySocket(t, ""))
	load := LoadHTTP(t, "http://"+s.Addr("http"), HTTP{})
	addr := s.Addr("http")
	for generation := 1; generation <= 4; generation++ {
		load.Wait(50)
		if got := s.Generation(); got != generation {
			t.Errorf("generation %d, want %d", got, generation)
		}
		old := s.PID()
		if err := s.Upgrade(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.WaitExit(old)
		if s.PID() == old {
			t.Errorf("process %d is still the server", old)
		}
	}
	load.Wait(50)
	r := load.Stop()
	r.MustBeClean(t)
	if r.Requests < 250 {
		t.Errorf("%d requests, want those that were waited for", r.Requests)
	}
	if got := s.Addr("http"); got != addr {
		t.Errorf("the address is %s, want that of the beginning, %s", got, addr)
	}
	if c := s.Status().Counters; c != (upgrader.Counters{Upgrades: 4}) {
		t.Errorf("counters %+v", c)
	}
	if code := s.ExitCode(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	s.Stop()
}

func TestVerdicts(t *testing.T) {
	t.Parallel()
	for contact, spec := range contacts {
		for _, tt := range []struct {
			fault  string
			result upgrader.Result // empty: it succeeds
			phase  upgrader.Phase  // with a control socket
			reason string
		}{
			{fault: ""},
			{fault: "exits", result: upgrader.Failed, phase: upgrader.PhaseReady, reason: "exit status 3"},
			{fault: "hangs", result: upgrader.Failed, phase: upgrader.PhaseReady, reason: "limit reached"},
			{fault: "dies", result: upgrader.RolledBack, phase: upgrader.PhaseProbation, reason: "it ended"},
		} {
			t.Run(contact+" "+tt.fault, func(t *testing.T) {
				t.Parallel()
				s := Start(t, spec(t, tt.fault, "-ready-timeout", "500ms", "-probation", "300ms"))
				old := s.PID()
				err := s.Upgrade(t.Context())
				if tt.result == "" {
					if err != nil || s.PID() == old {
						t.Errorf("error %v; process %d serves, the old one was %d", err, s.PID(), old)
					}
					s.Stop()
					return
				}
				failed := (*VerdictError)(nil)
				if !errors.As(err, &failed) {
					t.Fatalf("error %v, want a VerdictError", err)
				}
				// From outside, one that is over between two looks cannot be told apart.
				if failed.Result != tt.result && (contact != "pidfile" || failed.Result != upgrader.Failed) {
					t.Errorf("result %q, want %q", failed.Result, tt.result)
				}
				if contact != "pidfile" && (failed.Phase != tt.phase || !strings.Contains(failed.Reason, tt.reason)) {
					t.Errorf("phase %q, %q; want %q, %q", failed.Phase, failed.Reason, tt.phase, tt.reason)
				}
				if got := s.PID(); got != old {
					t.Errorf("process %d serves, want the old one, %d", got, old)
				}
				s.Stop()
			})
		}
	}
}

func TestProbationCanBeEnded(t *testing.T) {
	t.Parallel()
	s := Start(t, bySocket(t, "", "-probation", "1m"))
	first := s.PID()
	begin := func() *Attempt {
		t.Helper()
		a, err := s.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if old, successor := a.PIDs(); old != first || successor != s.PID() {
			t.Errorf("from process %d to process %d; want from %d to %d", old, successor, first, s.PID())
		}
		return a
	}
	rolledBack := func(a *Attempt) {
		t.Helper()
		failed := (*VerdictError)(nil)
		if err := a.Wait(); !errors.As(err, &failed) || failed.Result != upgrader.RolledBack {
			t.Errorf("verdict %v, want rolled back", err)
		}
		if got := s.PID(); got != first {
			t.Errorf("process %d serves, want %d", got, first)
		}
	}

	a := begin()
	if err := s.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
	rolledBack(a)

	a = begin()
	if pid := s.Crash(); pid == first {
		t.Errorf("process %d was killed, want the new one", pid)
	}
	rolledBack(a)

	a = begin()
	if err := s.Confirm(t.Context()); err != nil {
		t.Error(err)
	}
	if err := a.Wait(); err != nil || s.PID() == first {
		t.Errorf("verdict %v, process %d serves", err, s.PID())
	}
	if err := s.Rollback(t.Context()); err == nil || !strings.Contains(err.Error(), "no upgrade is on probation") {
		t.Errorf("rollback without probation: %v", err)
	}
	s.Stop()
}

func TestUpgradeGoesOnWhenNobodyWaits(t *testing.T) {
	t.Parallel()
	for contact, spec := range contacts {
		t.Run(contact, func(t *testing.T) {
			t.Parallel()
			s := Start(t, spec(t, "", "-probation", "500ms"))
			ctx, cancel := context.WithCancel(t.Context())
			a, err := s.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			cancel()
			if err := a.Wait(); !errors.Is(err, context.Canceled) {
				t.Errorf("verdict %v, want that nobody waits for it", err)
			}
			old, successor := a.PIDs()
			s.WaitExit(old)
			if got := s.PID(); got != successor {
				t.Errorf("process %d serves, want %d", got, successor)
			}
			s.Stop()
		})
	}
}

func TestSuccessorSurvivesThePredecessor(t *testing.T) {
	t.Parallel()
	for contact, spec := range contacts {
		t.Run(contact, func(t *testing.T) {
			t.Parallel()
			s := Start(t, spec(t, "", "-probation", "1m"))
			a, err := s.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			old, successor := a.PIDs()
			s.Kill(old)
			if err := a.Wait(); err != nil {
				t.Error(err)
			}
			if got := s.PID(); got != successor {
				t.Errorf("process %d serves, want %d", got, successor)
			}
			if code := s.ExitCode(); code != -1 {
				t.Errorf("exit code %d of what was killed, want -1", code)
			}
			s.Stop()
		})
	}
}

func TestCrashEndsTheService(t *testing.T) {
	t.Parallel()
	spec := byPIDFile(t, "")
	s := Start(t, spec)
	_, addr, _ := strings.Cut(s.WaitOutput("serves on"), " on ")
	load := LoadHTTP(t, "http://"+addr, HTTP{})
	load.Wait(50)
	s.Crash()
	if err := s.Upgrade(t.Context()); err == nil || !strings.Contains(err.Error(), "every process of the server has ended") {
		t.Errorf("upgrade: %v", err)
	}
	// Nobody listens any more.
	for load.sofar().Failures["refused"] == 0 {
		_, more := load.answered()
		select {
		case <-more:
		case <-time.After(DefaultTimeout):
			t.Fatalf("nobody was refused: %s", load.sofar())
		}
	}
	load.Stop()
	s.Wait()
	Start(t, spec).Stop() // it takes over the stale pidfile
}

func TestSignalAndWait(t *testing.T) {
	t.Parallel()
	for contact, spec := range contacts {
		t.Run(contact, func(t *testing.T) {
			t.Parallel()
			s := Start(t, spec(t, ""))
			s.Signal(syscall.SIGTERM)
			s.Wait()
			if code := s.ExitCode(); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if line := s.WaitOutput("generation 1 serves"); !strings.HasSuffix(s.Output(), "\n"+line) {
				t.Errorf("output %q, want the line %q at its end", s.Output(), line)
			}
		})
	}
}

func TestBuiltServerIsReplaced(t *testing.T) {
	t.Parallel()
	build := func(version string) string {
		return Build(t, "github.com/go-handover/handover/cmd/demo", "-ldflags=-X main.version="+version)
	}
	control := SocketPath(t)
	v1 := build("v1")
	s := Start(t, Spec{
		Path: v1, Args: []string{"-listen", "127.0.0.1:0", "-probation", "50ms", "-control", control}, ControlSocket: control,
	})
	s.Replace(build("v2"))
	if err := s.Upgrade(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := self(s.Status()).Version; got != "v2" {
		t.Errorf("version %q, want v2", got)
	}
	a, err := os.ReadFile(v1)
	b, err2 := os.ReadFile(build("v1"))
	if err := errors.Join(err, err2); err != nil || !slices.Equal(a, b) {
		t.Errorf("what was built as v1 has been replaced itself, %v", err)
	}
	// A file that is no program fails the upgrade before anything is started.
	notes := filepath.Join(t.TempDir(), "notes")
	if err := os.WriteFile(notes, []byte("not a program"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Replace(notes)
	failed := (*VerdictError)(nil)
	if err := s.Upgrade(t.Context()); !errors.As(err, &failed) || failed.Phase != upgrader.PhasePrepare {
		t.Errorf("upgrade to a text: %v", err)
	}
	s.Stop()
}

func TestStaleFilesAreNotTheServer(t *testing.T) {
	t.Parallel()
	spec := byPIDFile(t, "")
	if err := os.WriteFile(spec.PIDFile, fmt.Appendln(nil, os.Getpid()), 0o644); err != nil {
		t.Fatal(err)
	}
	s := Start(t, spec)
	if pid := s.PID(); pid == os.Getpid() {
		t.Error("the pid of the test was taken for the server's")
	}
	s.Stop()
}

func TestPathsAreRelativeToTheDirectory(t *testing.T) {
	t.Parallel()
	for name, spec := range map[string]Spec{
		"pidfile":        {PIDFile: "app.pid", Args: []string{"-pidfile", "app.pid"}},
		"control socket": {ControlSocket: "control", Args: []string{"-control", "control"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec.Dir = filepath.Dir(SocketPath(t))
			s := Start(t, spec)
			if err := s.Upgrade(t.Context()); err != nil {
				t.Error(err)
			}
			s.Stop()
		})
	}
}

func TestSocketPath(t *testing.T) {
	var path string
	t.Run("a long name: "+strings.Repeat("x", 100), func(t *testing.T) {
		path = SocketPath(t)
		if len(path) > 80 {
			t.Errorf("%s is longer than a unix socket may be", path)
		}
		if fi, err := os.Stat(filepath.Dir(path)); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("mode %v, %v; want 0700", fi.Mode(), err)
		}
	})
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}
