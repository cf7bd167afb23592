package main

import (
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/go-handover/handover/internal/proctest"
)

// Somebody else starts the next one, and the one after that is there already.
func TestTakeOverAndStandby(t *testing.T) {
	demo, control := proctest.Demo(t, "v1"), filepath.Join(t.TempDir(), "control")
	alone := proctest.Spawn(t, demo, "-control", control, "-takeover", "require")
	alone.Wait(proctest.Text("nobody to take over from"))
	if code := alone.ExitCode(); code != 1 {
		t.Errorf("with nobody to take over from: exit code %d, want 1", code)
	}

	args := []string{"-control", control, "-probation", "100ms", "-drain-timeout", "10s"}
	s := proctest.Start(t, demo, args...)
	target := s.Target("http-0")
	args = append(args, "-pidfile", s.PIDFile)
	// Each finds out which generation it is when it serves, and not when it starts.
	first := proctest.Spawn(t, demo, append(args, "-standby")...)
	queued := s.Wait(proctest.Logged("standby is ready"))
	second := proctest.Spawn(t, demo, append(args, "-standby")...)
	s.After(queued, proctest.Logged("standby is ready"))
	s.Signal(s.PID(), syscall.SIGUSR1)
	first.Wait(proctest.Changed(first.First.Pid, "serving"))
	first.Wait(proctest.Logged("standby is ready"))
	first.Signal(first.First.Pid, syscall.SIGUSR1)
	second.Wait(proctest.Changed(second.First.Pid, "serving"))
	third := proctest.Spawn(t, demo, append(args, "-takeover", "require")...)
	third.Wait(proctest.Changed(third.First.Pid, "serving"))

	for i, old := range []*proctest.Server{s, first, second} {
		drained := old.Wait(proctest.Logged("drained"))
		if code := old.ExitCode(); code != 0 || drained.Generation != i+1 {
			t.Errorf("generation %d exits %d: %s", i+1, code, drained.Line)
		}
	}
	resp, err := http.Get(target)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(text), " generation=4 ") {
		t.Errorf("%q, %v; want generation 4", text, err)
	}
}
