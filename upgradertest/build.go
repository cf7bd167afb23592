package upgradertest

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/go-handover/handover/internal/proctest/program"
)

// Build runs go build on a package, by its import path or a directory that
// begins with "./" or "../", with the given flags; with -race if the test itself
// was built so. It returns the path of the binary, in a directory of tb's own.
// What was built once in a run of the test binary is not built again. Two
// versions of a server differ by a flag, "-ldflags=-X main.version=v2" or
// "-tags=broken".
func Build(tb testing.TB, pkg string, flags ...string) string {
	tb.Helper()
	return program.Build(tb, "", pkg, slices.Concat(raceFlags, flags)...)
}

// mainVariable is in the environment of a test binary that is to be the server.
const mainVariable = "UPGRADERTEST_MAIN"

// mainCalled reports that this test binary can be the server.
var mainCalled bool

// Main lets the test binary be the server, so that nothing has to be built: a
// Spec without a Path starts it, and it calls program, the main of the package
// that is tested. Call it in TestMain, as its only statement. Main runs the tests
// otherwise.
func Main(m *testing.M, program func()) {
	if os.Getenv(mainVariable) != "" {
		program()
		os.Exit(0)
	}
	mainCalled = true
	m.Run() // who calls TestMain exits with its code
}

// SocketPath returns a path for Options.ControlSocket. It is short, as a unix
// socket wants it, and nobody else can write to its directory, which is removed
// at the end of the test.
func SocketPath(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "up") //nolint:usetesting // tb.TempDir has the test's name in it, and other modes
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("directory of the control socket: %v", err)
		}
	})
	return filepath.Join(dir, "control")
}
