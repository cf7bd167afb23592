//go:build unix

package main

import (
	"encoding/json"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"

	"github.com/go-handover/handover/internal/proctest"
	"github.com/go-handover/handover/upgrader"
)

// TestStatusIsStableThroughUpgrades: several clients ask all the time, while two
// generations drain and upgrades of each kind follow each other. Nobody is ever
// left without an answer, and each answer is consistent, whichever process gives
// it.
func TestStatusIsStableThroughUpgrades(t *testing.T) {
	t.Parallel()
	control := filepath.Join(t.TempDir(), "control")
	s := service{proctest.Start(t, proctest.Demo(t, "v1", race()...), "-control", control,
		"-probation", "1s", "-drain-timeout", "5m", "-max-draining", "20"), control}
	for range 2 {
		s.occupy(t)
		ctl(t, s.bySocket(), "upgrade").want(t, exitDone)
	}
	bad := proctest.Faulty(t, "fail-before-ready")

	const clients, rounds = 4, 3
	over := make(chan struct{})
	var asking sync.WaitGroup
	seen := make([]observer, clients)
	for i := range seen {
		asking.Go(func() { seen[i].askUntil(t, over, s.bySocket()) })
	}
	for range rounds {
		ctl(t, s.bySocket(), "upgrade").want(t, exitDone)

		old, now := s.PID(), s.Now()
		upgrade := begin(t, append(s.bySocket(), "upgrade")...)
		s.After(now, proctest.Changed(old, "probation"))
		ctl(t, s.bySocket(), "rollback").want(t, exitDone)
		upgrade.end(t).want(t, exitRolledBack)

		s.Replace(bad)
		ctl(t, s.bySocket(), "upgrade").want(t, exitFailed)
		s.Replace(proctest.Demo(t, "v2", race()...))
	}
	close(over)
	asking.Wait()

	for i, o := range seen {
		if len(o.selves) < rounds || o.most < 3 {
			t.Errorf("client %d: %d answers, of %d processes, with %d generations at most", i, o.answers, len(o.selves), o.most)
		}
	}
	want := upgrader.Counters{Upgrades: 2 + rounds, Failures: rounds, Rollbacks: rounds}
	if got := s.status(t).Counters; got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, e := range s.Events() {
		if strings.Contains(e.Line, "DATA RACE") {
			t.Error(e.Line)
		}
	}
}

// observer is what one client has seen.
type observer struct {
	answers, most int
	selves        map[int]bool // pids
	last          upgrader.Counters
}

func (o *observer) askUntil(t *testing.T, over <-chan struct{}, server []string) {
	t.Helper()
	o.selves = make(map[int]bool)
	for !t.Failed() {
		select {
		case <-over:
			return
		default:
		}
		said := runIn(t, append(server, "status", "-json")...)
		said.want(t, exitDone)
		var status upgrader.Status
		if err := json.Unmarshal([]byte(said.out), &status); err != nil {
			t.Errorf("%v\n%s", err, said.out)
		}
		o.check(t, status)
		if t.Failed() {
			t.Logf("answer %d: %s", o.answers, said.out)
		}
	}
}

func (o *observer) check(t *testing.T, s upgrader.Status) {
	t.Helper()
	o.answers++
	o.most = max(o.most, len(s.Processes))
	selves := 0
	for i, p := range s.Processes {
		if p.Self {
			selves++
			o.selves[p.PID] = true
		}
		if i > 0 && p.Generation >= s.Processes[i-1].Generation {
			t.Errorf("generation %d after %d", p.Generation, s.Processes[i-1].Generation)
		}
		if p.PID == 0 || p.State == "" {
			t.Errorf("%+v", p)
		}
	}
	if selves != 1 {
		t.Errorf("%d processes have answered", selves)
	}
	now, before := s.Counters, o.last
	o.last = now
	if now.Upgrades < before.Upgrades || now.Failures < before.Failures || now.Rollbacks < before.Rollbacks || now.Killed < before.Killed {
		t.Errorf("%+v after %+v", now, before)
	}
}

// race returns the flag that this test was built with, for what it runs.
func race() []string {
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "-race" && s.Value == "true" {
			return []string{"-race"}
		}
	}
	return nil
}
