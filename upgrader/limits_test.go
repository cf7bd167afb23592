//go:build linux

package upgrader

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"

	"github.com/go-handover/handover/internal/wire"
)

// TestThousandSocketsAndFiles are duplicated, described and named.
func TestThousandSocketsAndFiles(t *testing.T) {
	var limit syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	if limit.Cur < 5000 {
		t.Skipf("RLIMIT_NOFILE is %d, want 5000", limit.Cur)
	}
	u := newAlone(t, Options{})
	dir := t.TempDir()
	for i := range 1000 {
		listenAs(t, u, fmt.Sprint("listener ", i), "unix", filepath.Join(dir, fmt.Sprint(i)))
		must(t, u.AddFile(fmt.Sprint("file ", i), os.Stdin))
	}
	meta, files, err := u.sockets.duplicate()
	must(t, err)
	defer closeAll(files)
	extra, vars, err := inheritance{channel: os.Stdin, meta: meta, sockets: files}.files(2)
	must(t, err)
	e, _, err := parseEnv(lookupIn(vars))
	must(t, err)
	if len(extra) != 2001 || len(e.fds) != 2000 {
		t.Fatalf("%d descriptors, %d names; want 2001 and 2000", len(extra), len(e.fds))
	}
	for i, f := range e.fds {
		if meta[i].Name != f.name || extra[f.fd-3] != files[i] {
			t.Fatalf("%q is descriptor %d, described as %q", f.name, f.fd, meta[i].Name)
		}
	}
}

// TestTooManyLongNames: the error names the limit, and nothing was started.
func TestTooManyLongNames(t *testing.T) {
	in := inheritance{channel: os.Stdin}
	for i := range 600 {
		in.meta = append(in.meta, wire.Socket{Name: fmt.Sprintf("%0255d", i)})
		in.sockets = append(in.sockets, os.Stdin)
	}
	u := newUpgrader(Options{})
	p, err := u.start(t.Context(), &image{path: "/bin/true"}, in)
	if p != nil {
		t.Error("a successor was started")
	}
	wantText(t, err, "the limit is 131071")
}

// envLimited is set in the process of a test that is at its limit.
const envLimited = "UPGRADER_TEST_LIMITED"

// limited runs a test in a process of its own with room for that many
// descriptors. It reports whether this is that process.
func limited(t *testing.T, n uint64) bool {
	t.Helper()
	if os.Getenv(envLimited) != "" {
		must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: n}))
		debug.SetGCPercent(-1) // it would close what has leaked
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), envLimited+"=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// withRoomFor calls f while exactly n descriptors are left.
func withRoomFor(t *testing.T, n int, f func()) {
	t.Helper()
	var ballast []*os.File
	for {
		file, err := os.Open(os.DevNull)
		if errors.Is(err, syscall.EMFILE) {
			break
		}
		must(t, err)
		ballast = append(ballast, file)
	}
	if len(ballast) < n {
		t.Fatalf("there is room for %d, want %d", len(ballast), n)
	}
	closeAll(ballast[:n])
	f()
	closeAll(ballast[n:])
}

// TestUpgradeAtTheLimitOfDescriptors: with whatever room there is, an upgrade
// fails with an error that names the limit, or has all that it needs. Nothing is
// lost by it, and this process serves on.
func TestUpgradeAtTheLimitOfDescriptors(t *testing.T) {
	if limited(t, 128) {
		upgradeAtTheLimit(t, Options{})
	}
}

// TestPreflightAtTheLimitOfDescriptors: it takes two more, and so does the
// successor's executable.
func TestPreflightAtTheLimitOfDescriptors(t *testing.T) {
	if limited(t, 128) {
		upgradeAtTheLimit(t, Options{Preflight: PreflightSHA256(nil)})
	}
}

func upgradeAtTheLimit(t *testing.T, o Options) {
	t.Helper()
	stranger := filepath.Join(t.TempDir(), "true") // says no hello
	found, err := exec.LookPath("true")
	must(t, err)
	copyTo(t, stranger, found, -1, nil)
	b, err := os.ReadFile(stranger)
	must(t, err)
	must(t, os.WriteFile(stranger+".sha256", fmt.Appendf(nil, "%x", sha256.Sum256(b)), 0o644))
	o.PIDFile, o.Executable = pidfilePath(t), stranger
	u := newAlone(t, o)
	for i := range 10 {
		listenAs(t, u, fmt.Sprint(i), "tcp", "127.0.0.1:0")
	}
	settle(t, u)
	refused, started := 0, 0
	for room := range 40 {
		before := openFDs(t)
		var err error
		withRoomFor(t, room, func() { err = u.Upgrade(t.Context()) })
		var se *SuccessorError
		switch {
		case !errors.As(err, &se):
			t.Fatalf("room for %d: %v, want a SuccessorError", room, err)
		case errors.Is(err, syscall.EMFILE):
			refused++
			wantText(t, err, "RLIMIT_NOFILE is 128")
			if se.PID != 0 || started > 0 {
				t.Errorf("room for %d: %v, want that nothing was started", room, err)
			}
		case se.Phase == PhaseHello:
			started++
		default:
			t.Errorf("room for %d: %v", room, err)
		}
		wantNoMoreFDs(t, before)
		wantPID(t, u.options.PIDFile, os.Getpid())
		wantFiles(t, u.options.PIDFile, "app.pid")
	}
	if refused < 10 || started < 10 {
		t.Errorf("%d refused, %d started", refused, started)
	}
}

// TestListenAtTheLimitOfDescriptors: the error is the system's, and what was
// inherited is not lost by it.
func TestListenAtTheLimitOfDescriptors(t *testing.T) {
	if !limited(t, 128) {
		return
	}
	u := newAlone(t, Options{})
	l, _ := hold(t, u, "main", "tcp", "127.0.0.1:0")
	p, _ := hold(t, u, "dns", "udp", "127.0.0.1:0")
	must(t, u.AddFile("file", os.Stdin))
	for room := range 4 {
		before := openFDs(t)
		heir := heirOf(t, u, Options{})
		withRoomFor(t, room, func() {
			ln, listenErr := heir.Listen(t.Context(), "main", "tcp", "127.0.0.1:0")
			pc, packetErr := heir.ListenPacket(t.Context(), "dns", "udp", "127.0.0.1:0")
			f, fileErr := heir.File("file")
			for call, err := range map[string]error{"Listen": listenErr, "ListenPacket": packetErr, "File": fileErr} {
				if err != nil && !errors.Is(err, syscall.EMFILE) || err == nil && room == 0 {
					t.Errorf("%s with room for %d: %v", call, room, err)
				}
			}
			if listenErr == nil {
				must(t, ln.Close())
			}
			if packetErr == nil {
				must(t, pc.Close())
			}
			if fileErr == nil {
				must(t, f.Close())
			}
		})
		if room == 0 {
			next, _ := hold(t, heir, "main", "tcp", "127.0.0.1:0")
			nextPacket, _ := hold(t, heir, "dns", "udp", "127.0.0.1:0")
			if inode(t, next) != inode(t, l) || inode(t, nextPacket) != inode(t, p) {
				t.Error("an inherited socket is lost")
			}
			must(t, next.Close())
			must(t, nextPacket.Close())
		}
		heir.sockets.end()
		wantNoMoreFDs(t, before)
	}
}
