//go:build unix

package proctest

import (
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
)

func get(t *testing.T, url string) string {
	t.Helper()
	// A kept connection would still be answered by the old process.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestUpgradeStartsTheReplacedBinary(t *testing.T) {
	s := Start(t, Demo(t, "v1"), "-probation", "100ms")
	if got := get(t, s.Target("http-0")); !strings.Contains(got, "generation=1 version=v1") {
		t.Errorf("before: %s", got)
	}
	s.Replace(Demo(t, "v2"))
	pid := s.Upgrade()
	if got := get(t, s.Target("http-0")); !strings.Contains(got, "generation=2 version=v2") {
		t.Errorf("after: %s", got)
	}
	if pid == s.First.Pid || pid != s.PID() {
		t.Errorf("the pidfile names %d, the first process was %d", pid, s.First.Pid)
	}
	if code := s.ExitCode(); code != 0 {
		t.Errorf("the old process exits %d", code)
	}
	s.Stop()
}

func TestFaultyProgramsAreRolledBack(t *testing.T) {
	for fault, phase := range map[string]string{
		"crash-at-once":         "hello",
		"crash-before-ready":    "ready",
		"crash-after-ready:1ms": "probation",
		"hang-before-ready":     "ready",
	} {
		t.Run(fault, func(t *testing.T) {
			s := Start(t, Demo(t, "v1"), "-probation", "300ms", "-ready-timeout", "500ms")
			s.Replace(Faulty(t, fault))
			before := s.Now()
			if v := s.TryUpgrade(); v.To != "serving" {
				t.Errorf("verdict %s", v.Line)
			}
			s.After(before, Text("upgrader: "+phase+": ")) // the operator is told
			s.Replace(Demo(t, "v2"))
			s.Signal(s.Upgrade(), syscall.SIGTERM)
			s.WaitGone()
		})
	}
}
