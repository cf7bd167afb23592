//go:build linux

// Package handover holds the tests of the whole: a real server, cmd/demo,
// replaces itself under load from clients that never retry, and loses nothing.
package handover

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
	"github.com/go-handover/handover/internal/proctest/load"
)

// Every test wants a short probation, because it is what an upgrade takes, and
// that no generation is told to hurry because so many drain at once.
var quick = []string{"-probation", "50ms", "-max-draining", "1000"}

// mix is one of all clients; keep-alive connections are most of them.
var mix = map[load.Kind]int{load.New: 2, load.Late: 2, load.Get: 16, load.Post: 16, load.Slow: 4, load.Stream: 4}

// under puts load on each of the targets. The function that it returns ends
// the load, and fails the test if one request was lost.
func under(t *testing.T, clients map[load.Kind]int, targets ...string) (loads []*load.Load, end func()) {
	t.Helper()
	for _, target := range targets {
		l, err := load.Start(t.Context(), load.Config{Target: target, Clients: clients, Duration: 10 * time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		loads = append(loads, l)
	}
	return loads, func() {
		t.Helper()
		for _, l := range loads {
			r := l.Stop()
			t.Logf("%s", r)
			if r.Total.Failed > 0 || r.Total.Cut > 0 {
				t.Errorf("%s: %d of %d requests lost", r.Target, r.Total.Failed+r.Total.Cut, r.Total.Requests)
			}
			for _, k := range r.Kinds {
				if k.Requests == 0 {
					t.Errorf("%s: no request of the kind %s ended: the test showed nothing", r.Target, k.Kind)
				}
			}
		}
	}
}

// upgrades replaces the server n times, back and forth between two versions, each
// time after some client has been answered by the process that is replaced.
func upgrades(s *proctest.Server, n int, versions [2]string, loads []*load.Load, after func()) {
	for i := range n {
		s.Replace(versions[(i+1)%2])
		for _, l := range loads {
			l.WaitFor(s.PID())
			l.Mark(time.Now())
		}
		s.Upgrade()
		if after != nil {
			after()
		}
	}
}

func demos(t *testing.T) [2]string {
	t.Helper()
	return [2]string{proctest.Demo(t, "v1"), proctest.Demo(t, "v2")}
}

// answered asserts that every one of n generations was seen by some client, so
// that the load really ran across the upgrades.
func answered(t *testing.T, l *load.Load, n int) {
	t.Helper()
	if got := len(l.Processes()); got < n {
		t.Errorf("%d processes answered, want %d", got, n)
	}
}

func TestHundredUpgradesLoseNothing(t *testing.T) {
	s := proctest.Start(t, proctest.Demo(t, "v1"), quick...)
	loads, end := under(t, mix, s.Target("http-0"))
	upgrades(s, 100, demos(t), loads, nil)
	answered(t, loads[0], 100)
	end()
}

func TestUpgradesOfTLSLoseNothing(t *testing.T) {
	s := proctest.Start(t, proctest.Demo(t, "v1"), append(quick, "-tls", "127.0.0.1:0")...)
	loads, end := under(t, mix, s.Target("tls"))
	upgrades(s, 20, demos(t), loads, nil)
	answered(t, loads[0], 20)
	end()
}

// TestUpgradesOfAUnixSocketLoseNothing: and its path is there all the time.
func TestUpgradesOfAUnixSocketLoseNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.sock")
	s := proctest.Start(t, proctest.Demo(t, "v1"), append(quick, "-listen", "unix:"+path)...)
	loads, end := under(t, mix, "unix:"+path)
	upgrades(s, 20, demos(t), loads, func() {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
	answered(t, loads[0], 20)
	end()
	s.Stop()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket's path is left behind")
	}
}

func TestUpgradesOfTenListenersLoseNothing(t *testing.T) {
	args := quick
	for range 10 {
		args = append(args, "-listen", "127.0.0.1:0")
	}
	s := proctest.Start(t, proctest.Demo(t, "v1"), args...)
	var targets []string
	for i := range 10 {
		targets = append(targets, s.Target(fmt.Sprintf("http-%d", i)))
	}
	loads, end := under(t, map[load.Kind]int{load.New: 1, load.Get: 2, load.Post: 2, load.Slow: 1, load.Stream: 1}, targets...)
	upgrades(s, 20, demos(t), loads, nil)
	end()
}

// TestStormOfSignalsLosesNothing: 20 signals, 2 ms apart, are one upgrade.
func TestStormOfSignalsLosesNothing(t *testing.T) {
	s := proctest.Start(t, proctest.Demo(t, "v1"), "-probation", "500ms")
	_, end := under(t, mix, s.Target("http-0"))
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for range 20 {
		s.Signal(s.PID(), syscall.SIGUSR1)
		<-tick.C
	}
	s.Wait(proctest.Reached(1, "draining"))
	s.Wait(proctest.Reached(2, "serving"))
	end()
	for _, e := range s.Events() {
		if e.Generation > 2 {
			t.Fatalf("a third process: %s", e.Line)
		}
	}
}

// TestUpgradesWhileOlderGenerationsDrain: three generations have a request of
// 30 s each, which completes, while newer ones come and go.
func TestUpgradesWhileOlderGenerationsDrain(t *testing.T) {
	s := proctest.Start(t, proctest.Demo(t, "v1"), quick...)
	target := s.Target("http-0")
	loads, end := under(t, mix, target)
	type result struct {
		body string
		err  error
	}
	results := make(chan result, 3)
	for range 3 {
		// The request is in the server's hands once its first line is here.
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get(target + "/stream?ms=30000") //nolint:bodyclose // the goroutine below does
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			results <- result{string(body), err}
		}()
		s.Upgrade()
	}
	upgrades(s, 10, demos(t), loads, nil)
	for range 3 {
		r := <-results
		if r.err != nil || !strings.HasSuffix(r.body, "end\n") {
			t.Errorf("a stream of 30 s: %d bytes, %v", len(r.body), r.err)
		}
	}
	end()
}

// TestGoodAndBadBinariesInTurn: a bad binary of every kind costs nothing, and
// the good one after it replaces the server.
func TestGoodAndBadBinariesInTurn(t *testing.T) {
	s := proctest.Start(t, proctest.Demo(t, "v1"), append(quick, "-ready-timeout", "2s")...)
	loads, end := under(t, mix, s.Target("http-0"))
	versions := demos(t)
	bad := map[string]func(path string) error{
		"missing":        func(string) error { return nil },
		"a directory":    func(path string) error { return os.Mkdir(path, 0o755) },
		"not executable": func(path string) error { return os.WriteFile(path, []byte("#!/bin/sh\n"), 0o644) },
		"empty":          func(path string) error { return os.WriteFile(path, nil, 0o755) },
		"garbage":        func(path string) error { return os.WriteFile(path, []byte("garbage"), 0o755) },
		"wrong architecture": func(path string) error {
			return edited(path, versions[0], func(b []byte) []byte { b[18] ^= 0x55; return b })
		},
		"truncated": func(path string) error {
			return edited(path, versions[0], func(b []byte) []byte { return b[:len(b)/2] })
		},
		"another program": func(path string) error { return os.WriteFile(path, []byte("#!/bin/sh\nexit 3\n"), 0o755) },
		"hangs":           func(path string) error { return edited(path, proctest.Faulty(t, "hang-before-ready"), nil) },
		"crashes":         func(path string) error { return edited(path, proctest.Faulty(t, "crash-before-ready"), nil) },
	}
	i := 0
	for name, spoil := range bad {
		if err := os.RemoveAll(s.Path); err != nil {
			t.Fatal(err)
		}
		if err := spoil(s.Path); err != nil {
			t.Fatal(err)
		}
		pid := s.PID()
		if v := s.TryUpgrade(); v.To != "serving" || v.Err == "" {
			t.Errorf("%s: verdict %s", name, v.Line)
		}
		if s.PID() != pid {
			t.Errorf("%s: the pidfile names %d, want %d", name, s.PID(), pid)
		}
		if err := os.RemoveAll(s.Path); err != nil {
			t.Fatal(err)
		}
		upgrades(s, 1, [2]string{versions[i%2], versions[(i+1)%2]}, loads, nil)
		i++
	}
	end()
}

// edited writes a changed copy of a binary.
func edited(path, binary string, edit func([]byte) []byte) error {
	b, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	if edit != nil {
		b = edit(b)
	}
	return os.WriteFile(path, b, 0o755)
}
