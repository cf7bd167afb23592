package main

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-handover/handover/upgrader"
)

func TestFlags(t *testing.T) {
	c, err := parse([]string{
		"-listen", "127.0.0.1:1", "-listen", "unix:/tmp/s", "-tls", ":2", "-pidfile", "p", "-probation", "1s",
		"-drain-timeout", "2s", "-lame-duck", "6s", "-ready-timeout", "3s", "-ready-delay", "4s", "-keep-cache", "-max-draining", "5", "-log", "json",
		"-control", "c", "-takeover", "require", "-standby",
	}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.listen, []string{"127.0.0.1:1", "unix:/tmp/s"}) || c.tls != ":2" || c.pidfile != "p" ||
		c.probation != time.Second || c.drainTimeout != 2*time.Second || c.lameDuck != 6*time.Second || c.readyTimeout != 3*time.Second ||
		c.readyDelay != 4*time.Second || !c.keepCache || c.maxDraining != 5 ||
		c.control != "c" || c.takeOver != upgrader.TakeOverRequire || !c.standby || c.log != "json" || c.nothingToServe {
		t.Errorf("got %+v", c)
	}
	if c, err = parse(nil, io.Discard); err != nil || !slices.Equal(c.listen, []string{"127.0.0.1:8080"}) {
		t.Errorf("defaults: %+v, %v", c, err)
	}
	for word, want := range map[string]upgrader.TakeOver{"auto": upgrader.TakeOverAuto, "never": upgrader.TakeOverNever} {
		if c, err = parse([]string{"-takeover", word}, io.Discard); err != nil || c.takeOver != want {
			t.Errorf("-takeover %s: %v, %v", word, c.takeOver, err)
		}
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
		{[]string{"-takeover", "perhaps"}, 2, ""},
		{[]string{"-takeover", "require"}, 2, ""},
		{[]string{"-standby"}, 2, ""},
		{[]string{"-standby", "-control", "c", "-takeover", "never"}, 2, ""},
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
