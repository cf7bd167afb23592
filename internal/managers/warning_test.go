//go:build linux

package managers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-handover/handover/internal/proctest"
)

// TestWarningWithoutASupervisor: each of them would take the first upgrade for
// the end of the service. That there is no warning with the supervisor is
// part of the upgrades under each.
func TestWarningWithoutASupervisor(t *testing.T) {
	t.Parallel()
	for _, m := range []struct {
		name, pkg string
		open      func(h home, flags string) *service
	}{
		{"runsv", "runit", openRunit},
		{"s6-supervise", "s6", openS6},
		{"supervise", "daemontools", openDaemontools},
		{"supervisord", "supervisor", openSupervisord},
	} {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			installed(t, m.pkg, m.name)
			h := newHome(t)
			h.install("upgradectl", unsupervised(t))
			s := m.open(h, "-probation 100ms")
			s.Wait(proctest.Reached(1, "serving"))
			warned := s.warnings()
			if len(warned) != 1 {
				t.Fatalf("warned %d times: %q", len(warned), warned)
			}
			for _, want := range []string{m.name + " ", "upgradectl supervise"} {
				if !strings.Contains(warned[0], want) {
					t.Errorf("the warning does not say %q: %s", want, warned[0])
				}
			}
		})
	}
}

// unsupervised stands in the place of upgradectl, and becomes what it is given:
// the files of contrib stay as they are, and start the server itself.
func unsupervised(t *testing.T) string {
	t.Helper()
	const script = "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift\nexec \"$@\"\n"
	path := filepath.Join(t.TempDir(), "upgradectl")
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
