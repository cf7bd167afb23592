//go:build unix

package upgradertest

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest/program"
)

// What is wrong with a server, or with a test, is told.

func TestServerThatDoesNotServeIsReported(t *testing.T) {
	t.Parallel()
	for contact, spec := range contacts {
		t.Run(contact, func(t *testing.T) {
			t.Parallel()
			j := judged(t, func(tb testing.TB) {
				spec := spec(tb, "first")
				spec.Timeout = time.Second
				Start(tb, spec)
				t.Error("Start has returned")
			})
			wantComplaint(t, j.said, "the server does not serve", "not within 1s (Spec.Timeout)", "it has printed nothing")
			if log := strings.Join(j.logged, "\n"); !strings.Contains(log, "upgradertest.before(") {
				t.Errorf("the log does not say where it hangs: %s", log)
			}
		})
	}
}

func TestServerThatEndsAtOnceIsReported(t *testing.T) {
	t.Parallel()
	for contact, spec := range contacts {
		t.Run(contact, func(t *testing.T) {
			t.Parallel()
			said := complaints(t, func(tb testing.TB) { Start(tb, spec(tb, "", "-no-such-flag")) })
			wantComplaint(t, said, "the server does not serve: it has ended: exit status 1", "its last lines:\n\tserver: flag provided but not defined")
		})
	}
}

func TestProcessThatIsLeftBehindIsReportedAndKilled(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(*Server){"stop": (*Server).Stop, "end of the test": func(*Server) {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s *Server
			said := complaints(t, func(tb testing.TB) {
				s = Start(tb, bySocket(tb, "leaves"))
				stop(s)
			})
			wantComplaint(t, said, "(sleep 60) was started by the server and left behind: killed")
			if left := s.program.PIDs(); len(left) > 0 {
				t.Errorf("processes %d are left", left)
			}
		})
	}
}

// Its environment is not the server's, so nobody finds it, but the end of its
// output would be heard.
func TestProcessThatHidesIsReported(t *testing.T) {
	t.Parallel()
	pid := 0
	said := complaints(t, func(tb testing.TB) {
		s := Start(tb, bySocket(tb, "hides"))
		s.Stop()
		if _, err := fmt.Sscanf(s.WaitOutput("helper"), "helper %d", &pid); err != nil {
			tb.Error(err)
		}
	})
	if pid == 0 || program.Signal(pid, syscall.SIGKILL) != nil {
		t.Errorf("the helper, %d, is not there", pid)
	}
	wantComplaint(t, said, "a process that is not known has the server's output open")
}

// An upgrade that this package has not asked for is no reason to complain.
func TestForeignUpgradeIsCleanedUp(t *testing.T) {
	t.Parallel()
	said := complaints(t, func(tb testing.TB) {
		s := Start(tb, bySocket(tb, ""))
		first := s.PID()
		if err := program.Signal(first, upgradeSignal); err != nil {
			tb.Error(err)
		}
		s.WaitExit(first)
	})
	if len(said) > 0 {
		t.Errorf("complaints: %q", said)
	}
}

func TestGenerationThatDoesNotEndIsReportedAndKilled(t *testing.T) {
	t.Parallel()
	var old int
	said := complaints(t, func(tb testing.TB) {
		s := Start(tb, bySocket(tb, "", "-slow", "1m"))
		old = s.PID()
		load := LoadHTTP(tb, "http://"+s.Addr("http"), HTTP{Clients: 1, Timeout: time.Hour})
		waitFor(tb, func() bool { return connections(s) > 0 })
		s.spec.Timeout = time.Second
		s.Stop()
		load.abandon()
	})
	wantComplaint(t, said, "of the server has not ended: killed")
	if old == 0 || !strings.Contains(said[0], "process ") {
		t.Errorf("process %d: %s", old, said)
	}
}

func TestLostRequestsAreReported(t *testing.T) {
	t.Parallel()
	s := Start(t, bySocket(t, "shutdown", "-slow", "2s"))
	load := LoadHTTP(t, "http://"+s.Addr("http"), HTTP{})
	load.Wait(1) // the clients ask again at once
	if err := s.Upgrade(t.Context()); err != nil {
		t.Fatal(err)
	}
	load.Wait(20)
	r := load.Stop()
	wantComplaint(t, complaints(t, func(tb testing.TB) { r.MustBeClean(tb) }), "requests were lost", " eof")
	s.Stop()
}

// It would give them a second to be answered in.
func TestRaceDetectorHidesNoLosses(t *testing.T) {
	t.Parallel()
	want := os.Getenv("GORACE")
	if raceFlags != nil {
		want = "atexit_sleep_ms=0 " + want
	}
	s := Start(t, bySocket(t, ""))
	if got := s.WaitOutput("GORACE="); got != "GORACE="+want {
		t.Errorf("%s, want %q", got, want)
	}
	s.Stop()
}

func TestDataRaceOfTheServerIsReported(t *testing.T) {
	t.Parallel()
	said := complaints(t, func(tb testing.TB) {
		s := Start(tb, bySocket(tb, "races"))
		if err := s.Upgrade(tb.Context()); err != nil {
			tb.Error(err)
		}
		s.Stop()
	})
	wantComplaint(t, said, "the server has a data race")
}

func TestMisuseIsReported(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		do   func(tb testing.TB)
		want string
	}{
		"no contact": {func(tb testing.TB) { Start(tb, Spec{}) }, "neither ControlSocket nor PIDFile is set"},
		"no file":    {func(tb testing.TB) { Start(tb, Spec{Path: "no-such-file", PIDFile: "x"}) }, "no-such-file: no such file or directory"},
		"no package": {func(tb testing.TB) { Build(tb, "./no-such-package") }, "go build ./no-such-package"},
		"no socket":  {func(tb testing.TB) { Start(tb, byPIDFile(tb, "")).Status() }, "Status needs Spec.ControlSocket"},
		"no order":   {func(tb testing.TB) { tb.Error(Start(tb, byPIDFile(tb, "")).Rollback(tb.Context())) }, "Rollback needs Spec.ControlSocket"},
		"no name":    {func(tb testing.TB) { Start(tb, bySocket(tb, "")).Addr("https") }, `has no socket "https", but [".control" "http"]`},
		"no process": {func(tb testing.TB) { Start(tb, bySocket(tb, "")).Kill(1) }, "process 1 is not there, or not this server's"},
		"no text": {func(tb testing.TB) {
			s := Start(tb, bySocket(tb, ""))
			s.spec.Timeout = 300 * time.Millisecond
			s.WaitOutput("no such text")
		}, `"no such text" is printed: not within 300ms`},
		"no text any more": {func(tb testing.TB) {
			s := Start(tb, bySocket(tb, ""))
			s.Stop()
			s.WaitOutput("no such text")
		}, `every process has ended, and none has printed "no such text"`},
		"no URL": {func(tb testing.TB) { LoadHTTP(tb, "127.0.0.1:80", HTTP{}) }, "is not a URL of http or https"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantComplaint(t, complaints(t, tt.do), tt.want)
		})
	}
}

// The first test that is run alone has not called Main.
func TestStartWithoutPathNeedsMain(t *testing.T) {
	mainCalled = false
	defer func() { mainCalled = true }()
	wantComplaint(t, complaints(t, func(tb testing.TB) { Start(tb, bySocket(tb, "")) }), "by Main in TestMain")
}

func TestSocketOfAnotherServerIsNotTakenForThisOne(t *testing.T) {
	t.Parallel()
	spec := bySocket(t, "")
	other := Start(t, spec)
	said := complaints(t, func(tb testing.TB) {
		// It does not open the socket itself.
		s := byPIDFile(tb, "")
		s.ControlSocket, s.PIDFile = spec.ControlSocket, ""
		Start(tb, s)
	})
	wantComplaint(t, said, "which this test has not started")
	other.Stop()
}

// waitFor looks until it is so.
func waitFor(tb testing.TB, so func() bool) {
	tb.Helper()
	limit := time.After(DefaultTimeout)
	for !so() {
		select {
		case <-time.After(look):
		case <-limit:
			tb.Fatal("not in time")
		}
	}
}

// connections is how many the server has open.
func connections(s *Server) int {
	if n := self(s.Status()).Connections; n != nil {
		return *n
	}
	return 0
}
