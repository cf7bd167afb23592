//go:build unix

package main

import (
	"bufio"
	"crypto/tls"
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

// All kinds of socket at once, under load, through a few upgrades.
func TestUpgradesUnderLoadLoseNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := proctest.Start(t, proctest.Demo(t, "v1"), "-listen", "127.0.0.1:0", "-listen", "unix:"+path,
		"-tls", "127.0.0.1:0", "-probation", "200ms", "-drain-timeout", "10s")
	var loads []*load.Load
	for _, socket := range []string{"http-0", "http-1", "tls"} {
		l, err := load.Start(t.Context(), load.Config{
			Target:  s.Target(socket),
			Clients: map[load.Kind]int{load.New: 2, load.Late: 2, load.Get: 4, load.Post: 4, load.Slow: 2, load.Stream: 2},
		})
		if err != nil {
			t.Fatal(err)
		}
		loads = append(loads, l)
	}
	for range 4 {
		for _, l := range loads {
			l.WaitFor(s.PID())
		}
		s.Upgrade()
	}
	for _, l := range loads {
		l.WaitFor(s.PID())
	}
	for _, l := range loads {
		r := l.Stop()
		if r.Total.Failed != 0 || len(r.Processes) != 5 {
			t.Error(r)
		}
	}
	s.Stop()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the unix socket's path is left behind: %v", err)
	}
}

func TestWarmUpThatShowsProgressMayTakeLonger(t *testing.T) {
	s := proctest.Start(t, proctest.Demo(t, "v1"),
		"-probation", "100ms", "-ready-timeout", "1500ms", "-ready-delay", "2500ms")
	s.Upgrade()
}

// TestCacheThatIsHandedOnNeedsNoWarmUp, and the counter goes on.
func TestCacheThatIsHandedOnNeedsNoWarmUp(t *testing.T) {
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprint("keep ", keep), func(t *testing.T) {
			args := []string{"-probation", "100ms"}
			if keep { // a warm-up would take longer than a new process is given, and show no progress
				args = append(args, "-keep-cache", "-ready-delay", "999ms", "-ready-timeout", "900ms")
			}
			s := proctest.Start(t, proctest.Demo(t, "v1"), args...)
			fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // what drains counts for itself
			get := func(path string) string {
				t.Helper()
				resp, err := fresh.Get(s.Target("http-0") + path)
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
			for generation := 1; generation <= 4; generation++ {
				by, cached, warm := generation, generation, false
				if keep {
					by, warm = 1, generation > 1
				} else {
					cached = 1
				}
				key := fmt.Sprint("/lookup?key=", generation)
				if got, want := get("/lookup?key=first"), fmt.Sprintf("first, looked up by generation %d\n", by); got != want {
					t.Errorf("generation %d: %q, want %q", generation, got, want)
				}
				if keep {
					get(key)
					cached++
				} else {
					get("/")
				}
				want := fmt.Sprintf("requests=%d cached=%d warm=%v\n", 3*generation, cached, warm)
				if got := get("/state"); got != want {
					t.Errorf("generation %d: %q, want %q", generation, got, want)
				}
				if generation < 4 {
					s.Upgrade()
				}
			}
		})
	}
}

func TestStopDuringWarmUpEndsBothProcesses(t *testing.T) {
	s := proctest.Start(t, proctest.Demo(t, "v1"), "-ready-delay", "2s")
	pid := s.PID()
	s.Signal(pid, syscall.SIGUSR1)
	s.Wait(proctest.Changed(pid, "upgrading"))
	s.Signal(pid, syscall.SIGTERM)
	s.Wait(proctest.Changed(pid, "stopped"))
	s.WaitGone()
	if code := s.ExitCode(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestSecondInstanceIsRefused(t *testing.T) {
	demo := proctest.Demo(t, "v1")
	s := proctest.Start(t, demo)
	second := proctest.Spawn(t, demo, "-pidfile", s.PIDFile)
	if code := second.ExitCode(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	second.Wait(proctest.Text("is held by process"))
	if s.PID() != s.First.Pid {
		t.Errorf("the pidfile names %d, want %d", s.PID(), s.First.Pid)
	}
}

// What was in flight when the old process was told to go is answered by it.
func TestRequestInFlightOutlivesTheUpgrade(t *testing.T) {
	s := proctest.Start(t, proctest.Demo(t, "v1"), "-probation", "100ms")
	conn, err := net.Dial("tcp", s.Addr("http-0"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	conn.Write([]byte("GET /stream?ms=1500 HTTP/1.1\r\nHost: x\r\n\r\n"))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Scan()
	s.Upgrade()
	var last string
	for lines.Scan() {
		last = lines.Text()
	}
	if lines.Err() != nil || last != "end" {
		t.Errorf("the stream ends with %q, %v", last, lines.Err())
	}
	conn.Close() // idle: the old process would wait for one more request
	if code := s.ExitCode(); code != 0 {
		t.Errorf("the old process exits %d", code)
	}
}

// health asks on a connection of its own, or on the one that client keeps.
func health(t *testing.T, client *http.Client, url string) int {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

func TestLameDuckServesAndIsNotReady(t *testing.T) {
	s := proctest.Start(t, proctest.Demo(t, "v1"), "-lame-duck", "2s")
	target := s.Target("http-0")
	fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if got := health(t, fresh, target+"/healthz/ready"); got != http.StatusOK {
		t.Errorf("ready: %d", got)
	}
	pid := s.PID()
	s.Signal(pid, syscall.SIGTERM)
	s.Wait(proctest.Changed(pid, "stopped"))
	for health(t, fresh, target+"/healthz/ready") == http.StatusOK { // until it has heard
		time.Sleep(time.Millisecond)
	}
	for path, want := range map[string]int{"/healthz/ready": 503, "/healthz/live": 200, "/": 200} {
		if got := health(t, fresh, target+path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	s.WaitGone()
}

// In an upgrade the path stays green, on new connections, and on an old one that
// the draining process keeps.
func TestUpgradeIsReadyAllTheTime(t *testing.T) {
	s := proctest.Start(t, proctest.Demo(t, "v1"), "-tls", "127.0.0.1:0", "-listen", "127.0.0.1:0", "-probation", "100ms", "-lame-duck", "1m")
	insecure := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	kept := &http.Client{Transport: insecure} // HTTP/1, as TLSClientConfig is set
	defer insecure.CloseIdleConnections()
	fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	check := func() {
		t.Helper()
		for url, client := range map[string]*http.Client{s.Target("http-0"): fresh, s.Target("tls"): kept} {
			if got := health(t, client, url+"/healthz/ready"); got != http.StatusOK {
				t.Errorf("%s: %d", url, got)
			}
		}
	}
	check()
	old := s.PID()
	s.Upgrade()
	s.Wait(proctest.Changed(old, "draining"))
	check() // the kept one is answered by the old process, for the last time
	if code := s.ExitCode(); code != 0 {
		t.Errorf("the old process exits %d", code)
	}
	check()
	pid := s.PID() // the pidfile goes with the stop
	s.Signal(pid, syscall.SIGTERM)
	s.Wait(proctest.Changed(pid, "stopped"))
	s.Signal(pid, syscall.SIGTERM) // lame for a minute otherwise
}

func TestConsoleLogNeedsNoTerminal(t *testing.T) {
	s := proctest.Spawn(t, proctest.Demo(t, "v1"), "-log", "console")
	s.Wait(proctest.Text("to=serving"))
	for _, e := range s.Events() {
		if strings.Contains(e.Line, "\x1b") {
			t.Errorf("colours in a pipe: %q", e.Line)
		}
	}
}

// Each kind of client gets what it wants, in the clear and over TLS.
func TestEachKindOfClientIsServed(t *testing.T) {
	s := proctest.Start(t, proctest.Demo(t, "v1"), "-listen", "127.0.0.1:0", "-tls", "127.0.0.1:0")
	clients := make(map[load.Kind]int)
	for _, k := range load.Kinds {
		clients[k] = 1
	}
	for _, socket := range []string{"http-0", "tls"} {
		l, err := load.Start(t.Context(), load.Config{
			Target: s.Target(socket), Clients: clients, Requests: 300, Hold: 50 * time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		<-l.Done()
		if r := l.Stop(); r.Total.Failed != 0 || r.Total.Told != 0 || r.Total.Requests != 300 {
			t.Error(r)
		}
	}
}
