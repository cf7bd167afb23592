package upgrader

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/go-handover/handover/internal/fd"
)

// preflight asks Options.Preflight for its verdict on the file that is to be
// executed, and waits for it no longer than ReadyTimeout and ctx allow.
func (u *Upgrader) preflight(ctx context.Context, i *image) error {
	path, done, err := i.lend()
	if err != nil {
		return err
	}
	limit := u.options.ReadyTimeout
	ctx = context.WithValue(ctx, namedKey{}, i.path)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer in %v: %w", limit, ErrTimeout))
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		defer done()
		answer <- u.answerOf(func() error { return u.options.Preflight(ctx, path) })
	}()
	select {
	case err = <-answer:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx) // it says so in its own words
	}
	return err
}

// answerOf is what a check says, or that it said nothing. A panic would end the
// process that serves because of a file that does not run yet.
func (u *Upgrader) answerOf(check func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			u.log.Error("preflight panicked", "pid", os.Getpid(), "stack", string(debug.Stack()))
			err = fmt.Errorf("it panicked: %v", v)
		}
	}()
	return check()
}

// namedKey is of the path of the executable, as the operator knows it, in the
// ctx of a Preflight.
type namedKey struct{}

// named is that path; for a caller other than an Upgrader it is path itself.
func named(ctx context.Context, path string) string {
	if name, ok := ctx.Value(namedKey{}).(string); ok {
		return name
	}
	return path
}

// Preflights is an Options.Preflight that calls several in their order. The
// first error is the verdict.
func Preflights(checks ...func(ctx context.Context, path string) error) func(ctx context.Context, path string) error {
	return func(ctx context.Context, path string) error {
		for _, check := range checks {
			if err := check(ctx, path); err != nil {
				return err
			}
		}
		return nil
	}
}

// PreflightOwner is an Options.Preflight. The file must belong to root or to
// this process's user, and so must its directory and those above it; and none of
// them may be writable by others, the group included. A directory with the
// sticky bit, such as /tmp, may. If the executable's path is a symbolic link,
// that holds for the directories of both.
func PreflightOwner(ctx context.Context, path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	file, err := location(path)
	if err != nil {
		return err
	}
	if err := checkOwner("the file", file, fi); err != nil {
		return err
	}
	for _, p := range []string{file, named(ctx, path)} {
		if err := checkDirectories(p); err != nil {
			return err
		}
	}
	return nil
}

// descriptors is where Linux shows the descriptors of a process as files.
const descriptors = "/proc/self/fd/"

// location is where a file lies, symbolic links resolved.
func location(path string) (string, error) {
	if strings.HasPrefix(path, descriptors) {
		return os.Readlink(path)
	}
	return filepath.EvalSymlinks(path)
}

// checkDirectories checks all directories above path.
func checkDirectories(path string) error {
	for dir := filepath.Dir(path); dir != path; path, dir = dir, filepath.Dir(dir) {
		fi, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if err := checkOwner("the directory", dir, fi); err != nil {
			return err
		}
	}
	return nil
}

// checkOwner refuses what somebody other than root and this process's user can
// change. Who can write to a directory can put another file there, also one of
// root's that is not the server.
func checkOwner(what, path string, fi fs.FileInfo) error {
	uid, known := fd.Owner(fi)
	mode := fi.Mode()
	switch {
	case !known:
		return fmt.Errorf("owner of %s: %w", path, errors.ErrUnsupported)
	case uid != 0 && uid != os.Geteuid():
		return fmt.Errorf("%s %s belongs to uid %d, want uid %d or root: chown it", what, path, uid, os.Geteuid())
	case mode.Perm()&0o022 != 0 && (!mode.IsDir() || mode&fs.ModeSticky == 0):
		return fmt.Errorf("%s %s is writable by others (mode %04o): chmod go-w it", what, path, mode.Perm())
	}
	return nil
}

// PreflightSHA256 returns an Options.Preflight that compares the file's SHA-256
// with want's answer, in hexadecimal. If want is nil, the file PATH.sha256 is
// read at each upgrade, as sha256sum(1) writes it; PATH is the path of the
// executable, and is not followed if it is a symbolic link.
//
// A sum that lies beside the file finds one that was not copied to its end, or
// not meant. It does not keep out who can write to both.
func PreflightSHA256(want func(ctx context.Context) (string, error)) func(ctx context.Context, path string) error {
	return func(ctx context.Context, path string) error {
		expect := want
		if expect == nil {
			expect = func(context.Context) (string, error) { return readSum(named(ctx, path) + ".sha256") }
		}
		text, err := expect(ctx)
		if err != nil {
			return err
		}
		sum, err := hex.DecodeString(text)
		if err != nil || len(sum) != sha256.Size {
			return fmt.Errorf("%.80q is not a SHA-256: want %d hexadecimal digits", text, 2*sha256.Size)
		}
		got, err := sumOf(ctx, path)
		if err == nil && !bytes.Equal(got, sum) {
			err = fmt.Errorf("its SHA-256 is %x, want %x", got, sum)
		}
		return err
	}
}

// maxSum is far more than the line that sha256sum writes for the longest path.
const maxSum = 8 << 10

// readSum returns the first word of a file of one line.
func readSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSum))
	if err != nil {
		return "", err
	}
	line, rest, _ := strings.Cut(string(b), "\n")
	words := strings.Fields(line)
	if len(words) == 0 || rest != "" {
		return "", fmt.Errorf("%s: want one line, as sha256sum writes it", path)
	}
	return words[0], nil
}

// sumOf reads a file until its end, or that of ctx.
func sumOf(ctx context.Context, path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const piece = 1 << 20
	sum := sha256.New()
	for ctx.Err() == nil {
		_, err := io.CopyN(sum, f, piece)
		switch {
		case errors.Is(err, io.EOF):
			return sum.Sum(nil), nil
		case err != nil:
			return nil, err
		}
	}
	return nil, context.Cause(ctx)
}

// PreflightProgram is an Options.Preflight. The file must be a build of the
// program that this process runs: by the build information in it, its main
// package and main module have the same paths. It finds a file that was put in
// the wrong place, not one that means to deceive.
func PreflightProgram(_ context.Context, path string) error {
	ours, ok := debug.ReadBuildInfo()
	if !ok {
		return errors.New("this process has no build information to compare with: build it with modules")
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	theirs, err := buildinfo.Read(f)
	if err != nil {
		return fmt.Errorf("its build information: %w", err)
	}
	if theirs.Path != ours.Path || theirs.Main.Path != ours.Main.Path {
		return fmt.Errorf("it is %s of module %q, this process is %s of module %q", theirs.Path, theirs.Main.Path, ours.Path, ours.Main.Path)
	}
	return nil
}
