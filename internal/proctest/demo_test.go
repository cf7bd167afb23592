//go:build unix

package proctest

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// What "make demo" runs, with one upgrade instead of ten.
func TestDemoScriptLosesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 15 s")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "../../scripts/demo.sh", "1").CombinedOutput()
	if err != nil {
		t.Error(err)
	}
	for _, want := range []string{"1 upgrades, 1 rolled back", "no request was lost to an upgrade"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}
