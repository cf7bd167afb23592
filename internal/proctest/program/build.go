package program

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// builds keeps the binaries of this test run in memory: no test has to remove
// what another one still uses.
var builds struct {
	mu    sync.Mutex
	byKey map[string][]byte
}

// Build builds a command once in a test run, with the given flags of go build,
// and returns the path of a copy in a directory of tb's own, where the test may
// rename and replace it. Dir is where go build runs; empty: where the test does.
func Build(tb testing.TB, dir, pkg string, flags ...string) string {
	tb.Helper()
	builds.mu.Lock()
	defer builds.mu.Unlock()
	path := filepath.Join(tb.TempDir(), filepath.Base(pkg))
	key := strings.Join(append([]string{dir, pkg}, flags...), "\x00")
	if binary, ok := builds.byKey[key]; ok {
		if err := Write(path, binary); err != nil {
			tb.Fatal(err)
		}
		return path
	}
	args := append([]string{"build", "-o", path}, flags...)
	cmd := exec.CommandContext(tb.Context(), "go", append(args, pkg)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	if builds.byKey == nil {
		builds.byKey = make(map[string][]byte)
	}
	builds.byKey[key] = binary
	return path
}

// Write writes a file that is to be executed. No other test starts a process
// meanwhile: it would have the file open for writing until it executes its own,
// and what is open for writing cannot be executed.
func Write(path string, content []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, content, 0o755)
}

// Replace puts a copy of binary at path, by rename, as a deploy does.
func Replace(path, binary string) error {
	next := path + ".next"
	content, err := os.ReadFile(binary)
	if err == nil {
		err = Write(next, content)
	}
	if err == nil {
		err = os.Rename(next, path)
	}
	return err
}
