//go:build linux

package managers

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/go-handover/handover/internal/proctest"
)

// monitrc is what Debian's own file says, in a directory of the test.
const monitrc = `
set daemon 1
set pidfile DIR/monit.pid
set idfile DIR/monit.id
set statefile DIR/monit.state
set httpd unixsocket DIR/monit.sock allow root:root
include DIR/monit/app.conf
`

// TestMonit: monit looks into the pidfile, so it shows another pid after each
// upgrade, and does not take that for a fault.
func TestMonit(t *testing.T) {
	t.Parallel()
	installed(t, "monit", "monit")
	h := newHome(t)
	h.contrib("monit/app.conf")
	conf := filepath.Join(h.dir, "monitrc")
	if err := os.WriteFile(conf, []byte(strings.ReplaceAll(monitrc, "DIR", h.dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	// The file checks port 8080 of 127.0.0.1, so this has a network of its own.
	s := h.start([]string{"--net"}, "", "sh", "-c", `ip link set lo up && exec monit -I -c "$1"`, "sh", conf)
	pid := func() int {
		said, _ := try(t, "monit", "-c", conf, "status", "app") // its socket may not be there yet
		found := regexp.MustCompile(`\n  pid +(\d+)`).FindStringSubmatch(said)
		if found == nil {
			return 0
		}
		pid, _ := strconv.Atoi(found[1]) // digits
		return pid
	}
	// shows waits until another process than before is the server, and monit knows.
	shows := func(what string, before int) int {
		t.Helper()
		var now int
		until(t, "the pidfile names "+what, func() bool {
			text, _ := os.ReadFile(h.pidfile()) // there may be none yet
			now, _ = strconv.Atoi(strings.TrimSpace(string(text)))
			return now != 0 && now != before
		})
		until(t, "monit shows "+what, func() bool { return pid() == now })
		return now
	}
	s.Wait(proctest.Text("started")) // before that the command would start it by itself, and elsewhere
	until(t, "monit takes commands", func() bool { _, err := os.Stat(filepath.Join(h.dir, "monit.sock")); return err == nil })
	run(t, "monit", "-c", conf, "start", "app")
	first := shows("the server", 0)
	s.Signal(first, syscall.SIGUSR1)
	second := shows("the new server", first)
	s.Signal(second, syscall.SIGKILL)
	shows("the server that the supervisor has started again", second)
	run(t, "monit", "-c", conf, "stop", "app")
	until(t, "the server has stopped", func() bool { _, err := os.Stat(h.pidfile()); return os.IsNotExist(err) })
	restarts := 0
	for _, e := range s.Events() {
		if strings.Contains(e.Line, "'app' start: ") {
			restarts++
		}
	}
	if restarts != 1 {
		t.Errorf("monit has started it %d times, want once", restarts)
	}
}
