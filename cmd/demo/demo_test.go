package main

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest/load"
	"github.com/go-handover/handover/upgrader"
)

func TestAnswers(t *testing.T) {
	s := httptest.NewServer(newHandler(4))
	defer s.Close()
	for _, test := range []struct {
		method, path, body string
		code               int
		want               string // prefix
	}{
		{"GET", "/healthz", "", 200, "ok\n"},
		{"POST", "/echo", "abc\x00\n", 200, "abc\x00\n"},
		{"GET", "/slow?ms=1", "", 200, "slow ms=1\n"},
		{"GET", "/stream?ms=20", "", 200, "line 1\nline 2\nend\n"},
		{"GET", "/stream?ms=0", "", 200, "end\n"},
		{"GET", "/heap?mb=1", "", 200, "heap mb=1\n"},
		{"GET", "/slow?ms=-1", "", 400, `ms="-1": want a number`},
		{"GET", "/stream", "", 400, `ms="": want a number`},
		{"GET", "/heap?mb=9999999999", "", 400, `mb="9999999999": want a number`},
		{"GET", "/ws", "", 426, "this is a WebSocket"},
		{"GET", "/elsewhere", "", 404, ""},
		{"GET", "/echo", "", 405, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), test.method, s.URL+test.path, strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != test.code || !strings.HasPrefix(string(body), test.want) {
			t.Errorf("%s %s: %d %q %v, want %d %q", test.method, test.path, resp.StatusCode, body, err, test.code, test.want)
		}
	}
}

// The load clients know every byte of what they must get.
func TestAnswersAreWhatTheLoadExpects(t *testing.T) {
	s := httptest.NewServer(newHandler(4))
	defer s.Close()
	l, err := load.Start(t.Context(), load.Config{Target: s.URL, Requests: 300, Hold: 30 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	<-l.Done()
	r := l.Stop()
	if r.Total.Failed != 0 || r.Total.Requests != 300 {
		t.Error(r)
	}
	if len(r.Processes) != 1 || r.Processes[0].Generation != 4 || r.Processes[0].Version != version {
		t.Errorf("processes %+v", r.Processes)
	}
}

func TestFlags(t *testing.T) {
	c, err := parse([]string{
		"-listen", "127.0.0.1:1", "-listen", "unix:/tmp/s", "-tls", ":2", "-pidfile", "p", "-probation", "1s",
		"-drain-timeout", "2s", "-ready-timeout", "3s", "-ready-delay", "4s", "-max-draining", "5", "-log", "json",
	}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.listen, []string{"127.0.0.1:1", "unix:/tmp/s"}) || c.tls != ":2" || c.pidfile != "p" ||
		c.probation != time.Second || c.drainTimeout != 2*time.Second || c.readyTimeout != 3*time.Second ||
		c.readyDelay != 4*time.Second || c.maxDraining != 5 || c.log != "json" || c.nothingToServe {
		t.Errorf("got %+v", c)
	}
	if c, err = parse(nil, io.Discard); err != nil || !slices.Equal(c.listen, []string{"127.0.0.1:8080"}) {
		t.Errorf("defaults: %+v, %v", c, err)
	}
	if c, err = parse([]string{"-tls", ":1"}, io.Discard); err != nil || c.listen != nil {
		t.Errorf("-tls alone listens on %q too, %v", c.listen, err)
	}
}

func TestExitCodeSaysWhoIsToBlame(t *testing.T) {
	for _, test := range []struct {
		args []string
		code int
		out  string
	}{
		{[]string{"-h"}, 0, "Usage: demo"},
		{[]string{"-version"}, 0, "demo " + version},
		{[]string{"-bogus"}, 2, ""},
		{[]string{"-probation", "soon"}, 2, ""},
		{[]string{"-log", "xml"}, 2, ""},
		{[]string{"more"}, 2, ""},
		{[]string{"-listen", "127.0.0.1:99999", "-log", "json"}, 1, ""},
	} {
		var out strings.Builder
		err := run(test.args, &out, io.Discard)
		if exitCode(err) != test.code || !strings.HasPrefix(out.String(), test.out) {
			t.Errorf("demo %q: exit code %d, want %d: %v\n%s", test.args, exitCode(err), test.code, err, &out)
		}
	}
	for err, want := range map[error]error{
		upgrader.ErrUpgraded: nil, upgrader.ErrStopped: nil,
		upgrader.ErrAborted: upgrader.ErrAborted, upgrader.ErrRolledBack: upgrader.ErrRolledBack,
	} {
		if got := unlessDeliberate(err); !errors.Is(got, want) {
			t.Errorf("%v counts as %v, want %v", err, got, want)
		}
	}
}
