//go:build linux

package probe

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
)

// running is the command in a process of its own.
type running struct {
	cmd    *exec.Cmd
	stdout strings.Builder
	lines  *bufio.Scanner // of standard error
}

func startProbe(t *testing.T, args ...string) *running {
	t.Helper()
	r := &running{cmd: exec.CommandContext(t.Context(), os.Args[0], args...)}
	r.cmd.Env = append(os.Environ(), asProbe+"=1")
	r.cmd.Stdout = &r.stdout
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.lines = bufio.NewScanner(stderr)
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill() // it may have ended
		_ = r.cmd.Wait()
	})
	return r
}

// await returns the first line of standard error with text in it.
func (r *running) await(t *testing.T, text string) string {
	t.Helper()
	for r.lines.Scan() {
		if strings.Contains(r.lines.Text(), text) {
			return r.lines.Text()
		}
	}
	t.Fatalf("it ended before it said %q", text)
	return ""
}

// interrupt ends the probe as a user does, and returns its exit code.
func (r *running) interrupt(t *testing.T) (code int) {
	t.Helper()
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	return r.wait(t)
}

// wait returns the exit code.
func (r *running) wait(t *testing.T) int {
	t.Helper()
	for r.lines.Scan() {
		t.Log(r.lines.Text())
	}
	_ = r.cmd.Wait() // the code says it
	return r.cmd.ProcessState.ExitCode()
}

// upgrades is how often each server is replaced.
const upgrades = 5

// probed puts a probe in a process of its own on a server that is upgraded, and
// returns what it has reported and its exit code.
func probed(t *testing.T, s *proctest.Server) (report, int) {
	t.Helper()
	url := s.Target("http-0")
	p := startProbe(t, "--json", "--duration", "0", "--rate", "0", "--think", "2ms", "--new", "2", "--keep", "12", "--body", "text",
		url+"/", "POST", url+"/echo")
	p.await(t, "requests")
	for range upgrades {
		pid := s.Upgrade()
		// Only what has answered can be lost with the next upgrade.
		p.await(t, "pid "+strconv.Itoa(pid))
	}
	code := p.interrupt(t)
	var r report
	if err := json.Unmarshal([]byte(p.stdout.String()), &r); err != nil {
		t.Fatalf("%v in\n%s", err, p.stdout.String())
	}
	t.Logf("%d requests, losses %v", r.Total.Requests, r.Total.Losses)
	if len(r.Processes) != upgrades+1 || len(r.Marks) != upgrades || r.Total.Around.N == 0 {
		t.Errorf("the probe sees %d processes and %d marks in %d upgrades, %d answers around them",
			len(r.Processes), len(r.Marks), upgrades, r.Total.Around.N)
	}
	for _, row := range r.Rows {
		if row.Requests < 100 {
			t.Errorf("%d requests of %s %s %s: that shows nothing", row.Requests, row.Method, row.URL, row.Kind)
		}
	}
	return r, code
}

// What is wrong elsewhere: a server that leaves with http.Server.Shutdown.
func TestProbeFindsWhatShutdownLoses(t *testing.T) {
	s := proctest.Start(t, proctest.Plain(t, "v1"), "-listen", "127.0.0.1:0", "-probation", "50ms", "-drain-timeout", "5s")
	r, code := probed(t, s)
	if code != codeLost || r.Total.Lost == 0 || r.Total.Lost != sum(r.Total.Losses) {
		t.Errorf("exit code %d, %d lost, %v", code, r.Total.Lost, r.Total.Losses)
	}
}

func TestProbeFindsNothingWithOurs(t *testing.T) {
	s := proctest.Start(t, proctest.Demo(t, "v1"), "-listen", "127.0.0.1:0", "-probation", "50ms", "-max-draining", "100")
	r, code := probed(t, s)
	if code != 0 || r.Total.Lost != 0 || r.Total.Reconnects != 0 {
		t.Errorf("exit code %d, %d lost, %d reconnects\n%q", code, r.Total.Lost, r.Total.Reconnects, r.Total.Examples)
	}
}

func TestInterruptPrintsTheTable(t *testing.T) {
	s := proctest.Start(t, proctest.Demo(t, "v1"), "-listen", "127.0.0.1:0")
	picture := filepath.Join(t.TempDir(), "picture.svg")
	p := startProbe(t, "--duration", "0", "--plot", picture, s.Target("http-0")+"/slow?ms=300")
	p.await(t, " requests ")
	if code := p.interrupt(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if out := p.stdout.String(); !strings.Contains(out, "GET /slow?ms=300 keep") || !strings.Contains(out, "total") {
		t.Errorf("no table:\n%s", out)
	}
	if svg, err := os.ReadFile(picture); err != nil || !strings.HasPrefix(string(svg), "<svg") {
		t.Errorf("no picture: %v", err)
	}
}

// A request that hangs does not hold up whoever is in a hurry.
func TestSecondInterruptAbandonsWhatIsInFlight(t *testing.T) {
	s := proctest.Start(t, proctest.Demo(t, "v1"), "-listen", "127.0.0.1:0")
	const hangs = 3 * time.Second
	p := startProbe(t, "--json", "--duration", "0", "--timeout", "1m", "--new", "0", "--keep", "1",
		s.Target("http-0")+"/", s.Target("http-0")+fmt.Sprintf("/slow?ms=%d", hangs.Milliseconds()))
	p.await(t, " requests ") // the slow one has just begun
	// Two of one kind that come together could be one.
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		if err := p.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	code := p.wait(t)
	var r report
	if err := json.Unmarshal([]byte(p.stdout.String()), &r); err != nil {
		t.Fatal(err)
	}
	if code != 0 || r.Elapsed >= hangs || r.Total.Lost != 0 || r.Rows[0].Requests == 0 || r.Rows[1].Requests != 0 {
		t.Errorf("exit code %d: %+v", code, r)
	}
}

func sum[K comparable](counts map[K]int) (n int) {
	for _, k := range counts {
		n += k
	}
	return n
}

// What a real control socket tells: two marks of each upgrade, of whichever
// process was followed when it happened.
func TestRealControlSocketTellsOfUpgrades(t *testing.T) {
	o := options{socket: filepath.Join(t.TempDir(), "control")}
	s := proctest.Start(t, proctest.Demo(t, "v1"), "-listen", "127.0.0.1:0", "-probation", "500ms", "-control", o.socket)
	p := &probe{started: time.Now()}
	unfollow, err := o.follow(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 3; n++ {
		pid := strconv.Itoa(s.Upgrade())
		for limit := time.Now().Add(20 * time.Second); p.countMarks() < 2*n && time.Now().Before(limit); {
			time.Sleep(time.Millisecond)
		}
		p.mu.Lock()
		marks := slices.Clone(p.marks)
		p.mu.Unlock()
		if len(marks) != 2*n {
			t.Fatalf("%d marks of %d upgrades: %+v", len(marks), n, marks)
		}
		serves, verdict := marks[2*n-2], marks[2*n-1]
		if serves.kind != markUpgrade || verdict.kind != markConfirmed || !strings.Contains(serves.text, pid) || !strings.Contains(verdict.text, pid) {
			t.Errorf("process %s: %+v and %+v", pid, serves, verdict)
		}
	}
	if err := unfollow(); err != nil {
		t.Error(err)
	}
}
