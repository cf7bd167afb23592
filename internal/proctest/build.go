package proctest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Import paths of what the tests run.
const (
	DemoPackage   = "github.com/go-handover/handover/cmd/demo"
	PlainPackage  = "github.com/go-handover/handover/internal/proctest/plain"
	FaultyPackage = "github.com/go-handover/handover/internal/proctest/faulty"
)

// builds keeps the binaries of this test run in memory: no test has to remove
// what another one still uses.
var builds struct {
	mu    sync.Mutex
	byKey map[string][]byte
}

// Build builds a command once in a test run, with the given flags of go build,
// and returns the path of a copy in a directory of t's own, where the test may
// rename and replace it.
func Build(t testing.TB, pkg string, flags ...string) string {
	t.Helper()
	builds.mu.Lock()
	defer builds.mu.Unlock()
	path := filepath.Join(t.TempDir(), filepath.Base(pkg))
	key := strings.Join(append([]string{pkg}, flags...), "\x00")
	if binary, ok := builds.byKey[key]; ok {
		if err := os.WriteFile(path, binary, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	args := append([]string{"build", "-o", path}, flags...)
	if out, err := exec.CommandContext(t.Context(), "go", append(args, pkg)...).CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if builds.byKey == nil {
		builds.byKey = make(map[string][]byte)
	}
	builds.byKey[key] = binary
	return path
}

// Demo builds cmd/demo as the given version.
func Demo(t testing.TB, version string, flags ...string) string {
	t.Helper()
	return Build(t, DemoPackage, append(flags, "-ldflags=-X main.version="+version)...)
}

// Plain builds cmd/demo with the drain of net/http.
func Plain(t testing.TB, version string, flags ...string) string {
	t.Helper()
	return Build(t, PlainPackage, append(flags, "-ldflags=-X main.version="+version)...)
}

// Faulty builds a program that takes the demo's flags and fails as internal/
// proctest/faulty says.
func Faulty(t testing.TB, fault string) string {
	t.Helper()
	return Build(t, FaultyPackage, "-ldflags=-X main.fault="+fault)
}
