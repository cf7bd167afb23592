//go:build unix

package proctest

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
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

// judge is a test that may fail without the real one failing.
type judge struct {
	testing.TB
	said []string
}

func (j *judge) Log(...any)                     {}
func (j *judge) Failed() bool                   { return len(j.said) > 0 }
func (j *judge) Errorf(format string, a ...any) { j.said = append(j.said, fmt.Sprintf(format, a...)) }

func (j *judge) Fatalf(format string, a ...any) {
	j.Errorf(format, a...)
	runtime.Goexit()
}

func TestProcessThatIsLeftIsKilledAndFailsTheTest(t *testing.T) {
	j := &judge{TB: t}
	s := Spawn(j, script(t, "#!/bin/sh\ntrap '' TERM\necho deaf\nexec sleep 60\n"))
	s.Wait(Text("deaf"))
	s.end(50*time.Millisecond, 50*time.Millisecond)
	if want := fmt.Sprintf("process %d is left: killed", s.First.Pid); !slices.Equal(j.said, []string{want}) {
		t.Errorf("the test is told %q, want %q", j.said, want)
	}
	if code := s.ExitCode(); code != -1 {
		t.Errorf("exit code %d: it was not killed", code)
	}
}

func TestWaitEndsWithTheLastProcess(t *testing.T) {
	j := &judge{TB: t}
	s := Spawn(j, script(t, "#!/bin/sh\necho bye\n"))
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		s.Wait(Reached(1, "serving"))
	}()
	<-returned
	if want := "every process has ended before generation 1 is serving"; !slices.Equal(j.said, []string{want}) {
		t.Errorf("the test is told %q, want %q", j.said, want)
	}
	if events := s.Events(); len(events) != 1 || events[0].Line != "bye" {
		t.Errorf("events %+v", events)
	}
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
