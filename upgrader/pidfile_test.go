//go:build unix

package upgrader

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/fd"
)

// pidfilePath returns where the pidfile of a test goes.
func pidfilePath(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "app.pid")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openedPIDFile(t *testing.T, path string) *pidfile {
	t.Helper()
	p, err := openPIDFile(path)
	must(t, err)
	t.Cleanup(func() { p.closeFiles() })
	return p
}

// servingPIDFile is the pidfile of a process of the first generation that
// serves.
func servingPIDFile(t *testing.T, path string) *pidfile {
	t.Helper()
	p := openedPIDFile(t, path)
	must(t, p.install())
	return p
}

// succeed prepares for a successor of that pid and returns what it inherits:
// like a fork, a duplicate shares the open file description and so the lock.
func succeed(t *testing.T, p *pidfile, pid int) *pidfile {
	t.Helper()
	f, err := p.prepare()
	must(t, err)
	must(t, p.name(pid))
	dup, err := fd.Dup(f, f.Name())
	must(t, err)
	s, err := inheritPIDFile(p.path, dup)
	must(t, err)
	t.Cleanup(func() { s.closeFiles() })
	return s
}

// stage is what a table's row finds and may change before its test goes on.
type stage struct {
	t    *testing.T
	path string
	p    *pidfile // nil: not open yet
}

// litter leaves an unlocked file.
func litter(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o600))
}

// lockedFile leaves a file that a living stranger holds.
func lockedFile(t *testing.T, path, content string) {
	t.Helper()
	litter(t, path, content)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	if ok, err := fd.TryLock(f); !ok || err != nil {
		t.Fatalf("TryLock: %v, %v", ok, err)
	}
}

func wantContent(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s: %q, %v; want %q", path, got, err, want)
	}
}

func wantPID(t *testing.T, path string, pid int) {
	t.Helper()
	wantContent(t, path, strconv.Itoa(pid)+"\n")
}

// wantFiles says what is in the pidfile's directory, and nothing else.
func wantFiles(t *testing.T, path string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the directory holds %q, want %q", got, want)
	}
}

func wantHeld(t *testing.T, err error, path string, pid int) {
	t.Helper()
	var held *PIDFileHeldError
	if !errors.As(err, &held) || held.Path != path || held.PID != pid {
		t.Fatalf("error %v; want a PIDFileHeldError for %s and process %d", err, path, pid)
	}
}

func wantText(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Fatalf("error %v; want one with %q", err, text)
	}
}

// wantLocked asserts that what path names is locked.
func wantLocked(t *testing.T, path string) {
	t.Helper()
	if stolen, err := steal(path); stolen || err != nil {
		t.Errorf("the lock on what %s names could be taken: %v, %v", path, stolen, err)
	}
}

// steal tries to lock what path names. A lock on a file that path names no
// longer is none.
func steal(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	ok, err := fd.TryLock(f)
	return ok && names(path, f), err
}

func TestPIDFileOfTheFirstGeneration(t *testing.T) {
	for name, before := range map[string]func(stage){
		"nothing there": func(stage) {},
		"stale":         func(s stage) { litter(s.t, s.path, "4711\n") },
		"stale, names a living process": func(s stage) {
			litter(s.t, s.path, strconv.Itoa(os.Getppid())+"\n")
		},
		"stale, names ourselves": func(s stage) {
			litter(s.t, s.path, strconv.Itoa(os.Getpid())+"\n")
		},
		"empty":   func(s stage) { litter(s.t, s.path, "") },
		"garbage": func(s stage) { litter(s.t, s.path, strings.Repeat("x", 1<<16)) },
		"crash before install": func(s stage) {
			litter(s.t, filepath.Join(filepath.Dir(s.path), ".app.pid.next"), "2147483647\nmore")
		},
		"crash on probation": func(s stage) {
			litter(s.t, s.path, "4711\n")
			must(s.t, os.Link(s.path, filepath.Join(filepath.Dir(s.path), ".app.pid.prev")))
			litter(s.t, filepath.Join(filepath.Dir(s.path), ".app.pid.next"), "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := pidfilePath(t)
			before(stage{t, path, nil})
			was, wasErr := os.ReadFile(path)
			p := openedPIDFile(t, path)
			is, isErr := os.ReadFile(path)
			if string(was) != string(is) || (wasErr == nil) != (isErr == nil) {
				t.Errorf("openPIDFile changed path from %q, %v to %q, %v", was, wasErr, is, isErr)
			}
			for range 2 {
				must(t, p.install())
				wantPID(t, path, os.Getpid())
				wantFiles(t, path, "app.pid")
				wantLocked(t, path)
			}
			for range 2 {
				must(t, p.remove())
				wantFiles(t, path)
			}
		})
	}
}

func TestPIDFileIsRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		before func(stage)
		want   string
	}{
		"symbolic link": {
			func(s stage) { must(s.t, os.Symlink("/run/real.pid", s.path)) },
			`app.pid is a symbolic link to "/run/real.pid": name the file itself`,
		},
		"directory": {
			func(s stage) { must(s.t, os.Mkdir(s.path, 0o755)) },
			"app.pid is not a regular file but drwx",
		},
		"pipe": {
			func(s stage) { must(s.t, syscall.Mkfifo(s.path, 0o644)) },
			"app.pid is not a regular file but prw",
		},
		"no directory": {
			func(s stage) { must(s.t, os.Remove(filepath.Dir(s.path))) },
			"no such file or directory",
		},
		"held": {
			func(s stage) { lockedFile(s.t, s.path, "4711\n") },
			"app.pid is held by process 4711: upgrade or stop that one, or choose another PIDFile",
		},
		"held, unreadable": {
			func(s stage) { lockedFile(s.t, s.path, "") },
			"app.pid is held by another process: ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := pidfilePath(t)
			tt.before(stage{t, path, nil})
			p, err := openPIDFile(path)
			wantText(t, err, tt.want)
			if p != nil {
				t.Errorf("got a pidfile beside the error")
			}
			left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
			if len(left) != 0 {
				t.Errorf("%q is left behind", left)
			}
		})
	}
}

func TestSecondInstanceIsRefused(t *testing.T) {
	path := pidfilePath(t)
	litter(t, path, "4711\n")
	p := openedPIDFile(t, path)

	_, err := openPIDFile(path)
	wantHeld(t, err, path, os.Getpid()) // starts, and is not the stale one
	must(t, p.install())
	_, err = openPIDFile(path)
	wantHeld(t, err, path, os.Getpid())

	s := succeed(t, p, 4711)
	_, err = openPIDFile(path)
	wantHeld(t, err, path, os.Getpid())
	must(t, p.commit())
	_, err = openPIDFile(path)
	wantHeld(t, err, path, 4711)
	must(t, p.confirm())
	_, err = openPIDFile(path)
	wantHeld(t, err, path, 4711)

	must(t, s.remove())
	openedPIDFile(t, path)
}

func TestOneOfManyStartersWins(t *testing.T) {
	for _, leftovers := range [][]string{nil, {"app.pid"}, {".app.pid.next"}, {"app.pid", ".app.pid.next", ".app.pid.prev"}} {
		t.Run(strings.Join(leftovers, " "), func(t *testing.T) {
			for range 25 {
				path := pidfilePath(t)
				for _, name := range leftovers {
					litter(t, filepath.Join(filepath.Dir(path), name), "4711\n")
				}
				raceStarters(t, path)
				wantPID(t, path, os.Getpid())
				wantFiles(t, path, "app.pid")
			}
		})
	}
}

func raceStarters(t *testing.T, path string) {
	t.Helper()
	var wg sync.WaitGroup
	winners := make(chan *pidfile, 8)
	for range cap(winners) {
		wg.Go(func() {
			p, err := openPIDFile(path)
			if err == nil {
				winners <- p
				err = p.install()
			}
			var held *PIDFileHeldError
			if err != nil && !errors.As(err, &held) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(winners) != 1 {
		t.Fatalf("%d instances have the pidfile", len(winners))
	}
	p := <-winners
	wantLocked(t, path)
	must(t, p.closeFiles())
}

func TestRelativePIDFileSurvivesChdir(t *testing.T) {
	path := pidfilePath(t)
	t.Chdir(filepath.Dir(path))
	p, err := openPIDFile("app.pid")
	must(t, err)
	t.Chdir("/")
	must(t, p.install())
	wantPID(t, path, os.Getpid())
	must(t, p.remove())
	wantFiles(t, path)
}

func TestPIDFileBehindASymlinkedDirectory(t *testing.T) {
	path := pidfilePath(t)
	link := filepath.Join(t.TempDir(), "run")
	must(t, os.Symlink(filepath.Dir(path), link))
	p := servingPIDFile(t, filepath.Join(link, "app.pid"))
	wantPID(t, path, os.Getpid())
	succeed(t, p, 4711)
	must(t, p.commit())
	wantPID(t, path, 4711)
}

func TestPIDFileIsReadableWhateverTheUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	path := pidfilePath(t)
	p := servingPIDFile(t, path)
	wantMode(t, path)
	succeed(t, p, 4711)
	must(t, p.commit())
	wantMode(t, path)
}

func wantMode(t *testing.T, path string) {
	t.Helper()
	fi, err := os.Stat(path)
	must(t, err)
	if fi.Mode() != 0o644 {
		t.Errorf("mode %v, want 0644", fi.Mode())
	}
}

func TestPIDFileFollowsAnUpgrade(t *testing.T) {
	path := pidfilePath(t)
	p := servingPIDFile(t, path)
	s := succeed(t, p, 4711)
	wantPID(t, path, os.Getpid())
	wantFiles(t, path, "app.pid", ".app.pid.next")

	must(t, p.commit())
	wantPID(t, path, 4711)
	wantFiles(t, path, "app.pid", ".app.pid.prev")

	must(t, p.confirm())
	wantPID(t, path, 4711)
	wantFiles(t, path, "app.pid", ".app.pid.prev")
	wantLocked(t, path)

	must(t, s.install())
	wantPID(t, path, 4711)
	wantFiles(t, path, "app.pid")
	must(t, s.remove())
	wantFiles(t, path)
}

func TestConfirmedProcessLeavesThePIDFileAlone(t *testing.T) {
	path := pidfilePath(t)
	p := servingPIDFile(t, path)
	s := succeed(t, p, 4711)
	must(t, p.commit())
	must(t, p.confirm())
	succeed(t, s, 4712)
	must(t, s.commit())

	f, err := p.prepare()
	if f != nil || err != nil {
		t.Errorf("prepare after confirm: %v, %v", f, err)
	}
	for name, err := range map[string]error{
		"install": p.install(), "name": p.name(1), "commit": p.commit(), "rollback": p.rollback(),
		"confirm": p.confirm(), "remove": p.remove(), "close": p.close(),
	} {
		if err != nil {
			t.Errorf("%s after confirm: %v", name, err)
		}
	}
	wantPID(t, path, 4712)
	wantFiles(t, path, "app.pid", ".app.pid.prev")
}

func TestNilPIDFileDoesNothing(t *testing.T) {
	p, err := openPIDFile("")
	if p != nil || err != nil {
		t.Fatalf("openPIDFile of no path: %v, %v", p, err)
	}
	if f, err := p.prepare(); f != nil || err != nil {
		t.Errorf("prepare: %v, %v", f, err)
	}
	for name, err := range map[string]error{
		"install": p.install(), "name": p.name(1), "commit": p.commit(), "rollback": p.rollback(),
		"confirm": p.confirm(), "remove": p.remove(), "close": p.close(),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRollbackNamesThisProcessAgain(t *testing.T) {
	for name, advance := range map[string]func(stage){
		"nothing begun": func(stage) {},
		"prepared": func(s stage) {
			_, err := s.p.prepare()
			must(s.t, err)
		},
		"named": func(s stage) { succeed(s.t, s.p, 4711) },
		"commit failed": func(s stage) {
			succeed(s.t, s.p, 4711)
			must(s.t, os.Remove(s.p.nextPath()))
			wantText(s.t, s.p.commit(), "no such file")
			wantFiles(s.t, s.p.path, "app.pid")
		},
		"committed": func(s stage) {
			succeed(s.t, s.p, 4711)
			must(s.t, s.p.commit())
		},
		"committed, prev deleted": func(s stage) {
			succeed(s.t, s.p, 4711)
			must(s.t, s.p.commit())
			must(s.t, os.Remove(s.p.prevPath()))
		},
		"committed, prev moved back by hand": func(s stage) {
			succeed(s.t, s.p, 4711)
			must(s.t, s.p.commit())
			must(s.t, os.Rename(s.p.prevPath(), s.p.path))
		},
		"committed, prev replaced": func(s stage) {
			succeed(s.t, s.p, 4711)
			must(s.t, s.p.commit())
			must(s.t, os.Remove(s.p.prevPath()))
			litter(s.t, s.p.prevPath(), "1\n")
		},
		"committed, removed by the successor": func(s stage) {
			next := succeed(s.t, s.p, 4711)
			must(s.t, s.p.commit())
			must(s.t, next.remove())
			wantFiles(s.t, s.p.path) // rollback makes a new one
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := pidfilePath(t)
			p := servingPIDFile(t, path)
			advance(stage{t, path, p})
			for range 2 {
				os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)) // it may be missing
				before := time.Now().Add(-time.Second)
				must(t, p.rollback())
				must(t, p.stamp())
				wantPID(t, path, os.Getpid())
				wantLocked(t, path)
				fi, err := os.Stat(path)
				must(t, err)
				if fi.ModTime().Before(before) {
					t.Errorf("last modified at %v, before the attempt ended at %v", fi.ModTime(), before)
				}
			}
			if name == "committed, prev replaced" {
				wantFiles(t, path, "app.pid", ".app.pid.prev") // not ours
			} else {
				wantFiles(t, path, "app.pid")
			}

			succeed(t, p, 4712) // the next attempt works
			must(t, p.commit())
			wantPID(t, path, 4712)
		})
	}
}

func TestCommitRefusesAFileThatIsNotOurs(t *testing.T) {
	path := pidfilePath(t)
	p := servingPIDFile(t, path)
	succeed(t, p, 4711)
	must(t, os.Remove(path))
	lockedFile(t, path, "1\n")
	wantText(t, p.commit(), "somebody has removed or replaced")
	must(t, p.rollback())
	wantContent(t, path, "1\n")
	wantFiles(t, path, "app.pid")
}

func TestPrepareFindsWhatStandsInTheWay(t *testing.T) {
	for name, tt := range map[string]struct {
		meddle func(stage)
		want   string // in the error; empty: prepare puts path back
	}{
		"deleted": {func(stage) {}, ""},
		"stale":   {func(s stage) { litter(s.t, s.p.path, "4711\n") }, ""},
		"held": {
			func(s stage) { lockedFile(s.t, s.p.path, "4711\n") },
			"app.pid is held by process 4711",
		},
		"symbolic link": {
			func(s stage) { must(s.t, os.Symlink("real.pid", s.p.path)) },
			"is a symbolic link to",
		},
		"another instance starts": {
			func(s stage) { openedPIDFile(s.t, s.p.path) },
			fmt.Sprintf("app.pid is held by process %d", os.Getpid()),
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := pidfilePath(t)
			p := servingPIDFile(t, path)
			must(t, os.Remove(path))
			tt.meddle(stage{t, path, p})
			if tt.want != "" {
				_, err := p.prepare()
				wantText(t, err, tt.want)
				return
			}
			s := succeed(t, p, 4711)
			wantPID(t, path, os.Getpid())
			wantLocked(t, path)
			must(t, p.commit())
			must(t, p.confirm())
			wantPID(t, path, 4711)
			must(t, s.remove())
			wantFiles(t, path)
		})
	}
}

func TestPrepareMakesUpForAFailedRollback(t *testing.T) {
	path := pidfilePath(t)
	p := servingPIDFile(t, path)
	succeed(t, p, 4711)
	must(t, p.commit())
	must(t, os.Remove(path))
	must(t, os.Mkdir(path, 0o755))
	for range 2 {
		wantText(t, p.rollback(), "roll back pidfile: rename ")
	}
	_, err := p.prepare()
	wantText(t, err, "prepare pidfile: roll back pidfile: ")

	must(t, os.Remove(path))
	succeed(t, p, 4712)
	wantPID(t, path, os.Getpid())
	wantLocked(t, path)
	wantFiles(t, path, "app.pid", ".app.pid.next")
}

func TestPrepareWithoutItsDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "app.pid")
	must(t, os.Mkdir(filepath.Dir(path), 0o755))
	p := servingPIDFile(t, path)
	must(t, os.RemoveAll(filepath.Dir(path)))
	for range 2 {
		if _, err := p.prepare(); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("prepare: %v", err)
		}
		must(t, p.rollback())
	}
	must(t, os.Mkdir(filepath.Dir(path), 0o755))
	succeed(t, p, 4711)
	wantPID(t, path, os.Getpid())
}

func TestSuccessorTakesOverFromADeadPredecessor(t *testing.T) {
	for name, advance := range map[string]func(stage){
		"before commit": func(stage) {},
		"within commit": func(s stage) { must(s.t, os.Link(s.p.path, s.p.prevPath())) },
		"after commit":  func(s stage) { must(s.t, s.p.commit()) },
		"path deleted":  func(s stage) { must(s.t, os.Remove(s.p.path)) },
		"next deleted":  func(s stage) { must(s.t, os.Remove(s.p.nextPath())) },
	} {
		for _, dying := range []bool{false, true} { // dying: it still has its files open
			t.Run(fmt.Sprint(name, dying), func(t *testing.T) {
				path := pidfilePath(t)
				p := servingPIDFile(t, path)
				s := succeed(t, p, os.Getpid())
				advance(stage{t, path, p})
				if !dying {
					must(t, p.closeFiles())
				}
				for range 2 {
					must(t, s.install())
					wantPID(t, path, os.Getpid())
					wantFiles(t, path, "app.pid")
				}
				must(t, p.closeFiles())
				wantLocked(t, path)
				succeed(t, s, 4711)
				must(t, s.commit())
				wantPID(t, path, 4711)
			})
		}
	}
}

func TestSuccessorTakesNothingFromALivingStranger(t *testing.T) {
	path := pidfilePath(t)
	p := servingPIDFile(t, path)
	s := succeed(t, p, 4711)
	must(t, p.closeFiles())
	must(t, os.Remove(path))
	lockedFile(t, path, "1\n")
	wantHeld(t, s.install(), path, 1)
	wantContent(t, path, "1\n")
}

func TestFailedSuccessorLeavesItsPredecessorsFiles(t *testing.T) {
	for name, end := range map[string]func(*pidfile) error{"close": (*pidfile).close, "remove": (*pidfile).remove} {
		t.Run(name, func(t *testing.T) {
			path := pidfilePath(t)
			p := servingPIDFile(t, path)
			must(t, end(succeed(t, p, 4711)))
			wantPID(t, path, os.Getpid())
			wantFiles(t, path, "app.pid", ".app.pid.next")
			must(t, p.commit()) // too late for it, and still sound
			must(t, p.rollback())
			wantPID(t, path, os.Getpid())
			wantFiles(t, path, "app.pid")
		})
	}
}

func TestCloseBeforeInstallLeavesNothing(t *testing.T) {
	path := pidfilePath(t)
	litter(t, path, "4711\n")
	p := openedPIDFile(t, path)
	for range 2 {
		must(t, p.close())
	}
	wantContent(t, path, "4711\n")
	wantFiles(t, path, "app.pid")
}

func TestCloseAfterInstallLeavesPath(t *testing.T) {
	path := pidfilePath(t)
	p := servingPIDFile(t, path)
	must(t, p.close())
	wantPID(t, path, os.Getpid())
}

func TestRemoveDuringAnAttemptLeavesNothing(t *testing.T) {
	path := pidfilePath(t)
	p := servingPIDFile(t, path)
	succeed(t, p, 4711)
	must(t, p.remove())
	wantFiles(t, path)
}

func TestBothStopOnProbation(t *testing.T) {
	for _, successorFirst := range []bool{true, false} {
		path := pidfilePath(t)
		p := servingPIDFile(t, path)
		s := succeed(t, p, 4711)
		must(t, p.commit())
		if successorFirst {
			must(t, s.remove())
		}
		must(t, p.remove())
		must(t, s.remove())
		wantFiles(t, path)
	}
}

func TestRemoveLeavesAForeignFile(t *testing.T) {
	path := pidfilePath(t)
	p := servingPIDFile(t, path)
	must(t, os.Remove(path))
	litter(t, path, "1\n")
	must(t, p.remove())
	wantContent(t, path, "1\n")
}

func TestInheritRefusesAnotherFile(t *testing.T) {
	path := pidfilePath(t)
	p := servingPIDFile(t, path)
	for name, open := range map[string]func() (string, *os.File){
		"is neither": func() (string, *os.File) {
			f, err := os.Create(filepath.Join(t.TempDir(), "other"))
			must(t, err)
			return path, f
		},
		"is held by": func() (string, *os.File) {
			f, err := os.Open(p.path)
			must(t, err)
			return path, f
		},
		"not an absolute path": func() (string, *os.File) {
			f, err := os.Open(p.path)
			must(t, err)
			return "app.pid", f
		},
	} {
		path, f := open()
		s, err := inheritPIDFile(path, f)
		wantText(t, err, name)
		if s != nil || !errors.Is(f.Close(), os.ErrClosed) {
			t.Errorf("%s: the file is still open, or there is a pidfile", name)
		}
	}
}

// history runs n upgrades with random ends and returns the process that
// serves after them.
func history(t *testing.T, p *pidfile, pids []int, n int) *pidfile {
	t.Helper()
	for range n {
		s := succeed(t, p, pids[rand.IntN(len(pids))])
		end := rand.IntN(4)
		if end > 0 {
			must(t, p.commit())
		}
		if end < 2 {
			must(t, p.rollback())
			must(t, s.close())
			continue
		}
		must(t, p.confirm())
		p = s
	}
	return p
}

func TestReaderSeesOnlyWholePIDsUnderLock(t *testing.T) {
	pids := []int{os.Getpid(), 7, 4711, 2147483647}
	path := pidfilePath(t)
	p := servingPIDFile(t, path)
	reader := watch(t, func() error { return checkReader(path, pids) })
	locker := watch(t, func() error { return checkLock(path) })
	p = history(t, p, pids, 200)
	reader()
	locker()
	must(t, p.remove())
	wantFiles(t, path)
}

// A file that somebody deletes is missing for a while, but comes back whole.
func TestReaderOfADeletedPIDFileSeesOnlyWholePIDs(t *testing.T) {
	path := pidfilePath(t)
	p := servingPIDFile(t, path)
	reader := watch(t, func() error {
		err := checkReader(path, []int{os.Getpid()})
		return unlessMissing(err)
	})
	for range 300 {
		must(t, os.Remove(path))
		_, err := p.prepare()
		must(t, err)
		must(t, p.rollback())
	}
	reader()
}

// watch looks again and again, in a goroutine that ends when end returns.
func watch(t *testing.T, look func() error) (end func()) {
	t.Helper()
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := look(); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	end = sync.OnceFunc(func() {
		close(done)
		<-ended
	})
	t.Cleanup(end)
	return end
}

var pidLine = regexp.MustCompile(`^[1-9][0-9]*\n$`)

func checkReader(path string, pids []int) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !pidLine.Match(b) || !slices.Contains(pids, parsePID(string(b))) {
		return fmt.Errorf("a reader saw %q", b)
	}
	return nil
}

func checkLock(path string) error {
	stolen, err := steal(path)
	if stolen {
		return errors.New("the lock could be taken")
	}
	return err
}

func TestPIDFileLeaksNoDescriptor(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("open descriptors cannot be counted here:", err)
		}
		return len(entries)
	}
	path := pidfilePath(t)
	p := servingPIDFile(t, path)
	runtime.GC() // no finalizer shall hide a leak, nor an earlier test make one
	before := count()
	p = history(t, p, []int{4711}, 50)
	for range 20 {
		must(t, os.Remove(path))
		_, err := p.prepare()
		must(t, err)
		must(t, p.rollback())
	}
	for range 20 {
		_, err := openPIDFile(path)
		wantHeld(t, err, path, parsePID(content(t, path)))
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
	must(t, p.remove())
	if after := count(); after != before-1 {
		t.Errorf("%d descriptors are open after remove, %d were", after, before)
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func TestParsePID(t *testing.T) {
	for s, want := range map[string]int{
		"4711\n": 4711, "4711": 4711, " 4711 \n\n": 4711, "2147483647\n": 2147483647,
		"": 0, "\n": 0, "0\n": 0, "-1\n": 0, "2147483648\n": 0, "99999999999999999999": 0,
		"47 11": 0, "4711\n4712\n": 0, "0x10": 0, "1e3": 0, "4711\x00": 0, "pid 4711": 0,
	} {
		if got := parsePID(s); got != want {
			t.Errorf("parsePID(%q) = %d, want %d", s, got, want)
		}
	}
}

func FuzzPIDFile(f *testing.F) {
	for _, s := range []string{"4711\n", "", "-1", "99999999999999999999", "2147483648", "\x00", " 7 "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		pid := parsePID(s)
		if pid < 0 || pid > 1<<31-1 {
			t.Fatalf("parsePID(%q) = %d", s, pid)
		}
		line := strconv.Itoa(pid) + "\n"
		if pid != 0 && (parsePID(line) != pid || len(line) > maxPIDText) {
			t.Fatalf("parsePID(%q) = %d, and of %q %d", s, pid, line, parsePID(line))
		}
	})
}
