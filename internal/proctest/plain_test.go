//go:build unix

package proctest

import (
	"strings"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest/load"
)

// every is a client of each kind.
func every() map[load.Kind]int {
	clients := make(map[load.Kind]int)
	for _, k := range load.Kinds {
		clients[k] = 1
	}
	return clients
}

// Plain answers what the demo answers, on the same sockets, and upgrades; that
// it loses requests is what it is for.
func TestPlainServesAndUpgrades(t *testing.T) {
	s := Start(t, Plain(t, "v1"), "-listen", "127.0.0.1:0", "-tls", "127.0.0.1:0",
		"-probation", "50ms", "-drain-timeout", "5s", "-max-draining", "10")
	for generation := 1; generation <= 3; generation++ {
		for _, socket := range []string{"http-0", "tls"} {
			l, err := load.Start(t.Context(), load.Config{
				Target: s.Target(socket), Clients: every(), Requests: 300, Hold: 50 * time.Millisecond,
			})
			if err != nil {
				t.Fatal(err)
			}
			<-l.Done()
			r := l.Stop()
			if r.Total.Failed > 0 || r.Total.Told > 0 || len(r.Processes) != 1 || r.Processes[0].Generation != generation || r.Processes[0].Version != "v1" {
				t.Errorf("generation %d, processes %+v\n%v", generation, r.Processes, r)
			}
		}
		if generation < 3 {
			s.Upgrade()
		}
	}
	s.Stop()
	if code := s.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, e := range s.Events() {
		if strings.Contains(e.Line, "panic") || e.Message == "serve" {
			t.Error(e.Line)
		}
	}
}
