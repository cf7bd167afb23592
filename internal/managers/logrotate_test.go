//go:build linux

package managers

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestLogrotate: a successor inherits the file that its predecessor logs to, so
// after a rotation both must still write to the one that has the name.
func TestLogrotate(t *testing.T) {
	t.Parallel()
	installed(t, "logrotate", "logrotate")
	h := newHome(t)
	conf := h.contrib("logrotate/app")
	s := h.start(nil, "-probation 100ms", "sh", "-c",
		"exec /usr/local/bin/app -pidfile /run/app/app.pid $APP_FLAGS 2>>/var/log/app/app.log")
	name := filepath.Join(h.dir, "log/app/app.log")
	says := func(text string) {
		t.Helper()
		until(t, fmt.Sprintf("%q is in the log", text), func() bool {
			b, _ := os.ReadFile(name) // it may not be there yet
			return strings.Contains(string(b), text)
		})
	}
	says(`"to":"serving"`)
	run(t, "nsenter", "--mount", "--target", fmt.Sprint(s.First.Pid),
		"logrotate", "--force", "--state", filepath.Join(h.dir, "state"), conf)
	s.Signal(s.PID(), syscall.SIGUSR1)
	says(`"to":"draining"`)
	says(`"from":"on probation","to":"serving"`)
	rotated, err := os.ReadFile(name + ".1")
	if err != nil || !strings.Contains(string(rotated), `"from":"starting","to":"serving"`) {
		t.Errorf("the rotated file: %v, %q", err, rotated)
	}
	now, err := os.ReadFile(name)
	if err != nil || !strings.HasPrefix(string(now), "{") || strings.Contains(string(now), `"from":"starting","to":"serving"`) {
		t.Errorf("the file after the rotation: %v, %q", err, now)
	}
	s.Stop()
}
