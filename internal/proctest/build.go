package proctest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Import paths of what the tests run.
const (
	DemoPackage   = "github.com/go-handover/handover/cmd/demo"
	PlainPackage  = "github.com/go-handover/handover/internal/proctest/plain"
	FaultyPackage = "github.com/go-handover/handover/internal/proctest/faulty"

	module            = "github.com/go-handover/handover"
	upgradectlPackage = module + "/cmd/upgradectl"
)

// Dir is where go build runs; empty: where the test does. The test of another
// module sets it to the directory of the module that has what is built.
var Dir string

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
	return buildIn(t, Dir, pkg, flags...)
}

func buildIn(t testing.TB, dir, pkg string, flags ...string) string {
	t.Helper()
	builds.mu.Lock()
	defer builds.mu.Unlock()
	path := filepath.Join(t.TempDir(), filepath.Base(pkg))
	key := strings.Join(append([]string{pkg}, flags...), "\x00")
	if binary, ok := builds.byKey[key]; ok {
		if err := WriteBinary(path, binary); err != nil {
			t.Fatal(err)
		}
		return path
	}
	args := append([]string{"build", "-o", path}, flags...)
	cmd := exec.CommandContext(t.Context(), "go", append(args, pkg)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
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

// WriteBinary writes a file that is to be executed. No other test starts a
// process meanwhile: it would have the file open for writing until it executes
// its own, and what is open for writing cannot be executed.
func WriteBinary(path string, content []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, content, 0o755)
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

// Upgradectl builds cmd/upgradectl, which is a module of its own.
func Upgradectl(t testing.TB) string {
	t.Helper()
	root, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return buildIn(t, filepath.Join(strings.TrimSpace(string(root)), "cmd", "upgradectl"), upgradectlPackage)
}
