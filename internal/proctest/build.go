package proctest

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-handover/handover/internal/proctest/program"
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

// Build builds a command once in a test run, with the given flags of go build,
// and returns the path of a copy in a directory of t's own, where the test may
// rename and replace it.
func Build(t testing.TB, pkg string, flags ...string) string {
	t.Helper()
	return program.Build(t, Dir, pkg, flags...)
}

// WriteBinary writes a file that is to be executed.
func WriteBinary(path string, content []byte) error { return program.Write(path, content) }

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
	return program.Build(t, filepath.Join(strings.TrimSpace(string(root)), "cmd", "upgradectl"), upgradectlPackage)
}
