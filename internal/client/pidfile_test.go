//go:build unix

package client

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// desk is a directory in which a test does what the processes of a server do
// with its pidfile.
type desk struct {
	t *testing.T
	PIDFile
}

func newDesk(t *testing.T) desk {
	t.Helper()
	d := desk{t, PIDFileAt(filepath.Join(t.TempDir(), "app.pid"))}
	d.write(d.Path, 1)
	return d
}

func (d desk) write(path string, pid int) {
	d.t.Helper()
	if err := os.WriteFile(path, fmt.Appendln(nil, pid), 0o644); err != nil {
		d.t.Fatal(err)
	}
}

func (d desk) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d desk) prepare() { d.write(d.Next, 2) }

func (d desk) commit() {
	d.must(os.Link(d.Path, d.Prev))
	d.must(os.Rename(d.Next, d.Path))
}

func (d desk) confirm() { d.must(os.Remove(d.Prev)) }

func (d desk) putBack() {
	d.must(os.Rename(d.Prev, d.Path))
	d.touch()
}

func (d desk) touch() { d.must(os.Chtimes(d.Path, time.Time{}, time.Now().Add(time.Hour))) }

func TestWitnessSeesHowAnUpgradeGoes(t *testing.T) {
	t.Parallel()
	living := func(int) bool { return true }
	type step struct {
		do   func(desk)
		want Sight
		pid  int
	}
	for name, steps := range map[string][]step{
		"upgraded": {
			{desk.prepare, Nothing, 0},
			{desk.commit, Committed, 2},
			{desk.confirm, Upgraded, 2},
		},
		"upgraded between two looks": {
			{func(d desk) { d.prepare(); d.commit(); d.confirm() }, Upgraded, 2},
		},
		"failed": {
			{desk.prepare, Nothing, 0},
			{func(d desk) { d.must(os.Remove(d.Next)) }, Nothing, 0},
			{desk.touch, Failed, 0},
		},
		"rolled back": {
			{func(d desk) { d.prepare(); d.commit() }, Committed, 2},
			{desk.putBack, RolledBack, 0},
		},
		"rolled back between two looks": {
			{func(d desk) { d.prepare(); d.commit(); d.putBack() }, Failed, 0},
		},
		"gone": {
			{func(d desk) { d.must(os.Remove(d.Path)) }, Nothing, 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			w, err := d.Witness()
			if err != nil {
				t.Fatal(err)
			}
			for i, s := range steps {
				s.do(d)
				if got, pid := w.Look(living); got != s.want || pid != s.pid {
					t.Fatalf("step %d: %v of process %d, want %v of process %d", i+1, got, pid, s.want, s.pid)
				}
			}
		})
	}
}

// The successor is confirmed, and has died: there is no verdict yet.
func TestWitnessWantsALivingProcess(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	w, err := d.Witness()
	if err != nil {
		t.Fatal(err)
	}
	d.prepare()
	d.commit()
	d.confirm()
	if got, _ := w.Look(func(pid int) bool { return pid != 2 }); got != Committed {
		t.Errorf("seen: %v, want %v", got, Committed)
	}
}

func TestWitnessNeedsAServerAtRest(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		do   func(desk)
		want error
	}{
		"prepared":     {desk.prepare, ErrBusy},
		"on probation": {func(d desk) { d.prepare(); d.commit() }, ErrBusy},
		"no pidfile":   {func(d desk) { d.must(os.Remove(d.Path)) }, fs.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			tt.do(d)
			if _, err := d.Witness(); !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
}

func TestNamed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.pid")
	for text, want := range map[string]int{" 4711 \n": 4711, "": 0, "\n": 0, "nobody": 0, "0": 0, "-1": 0, "1 2": 0} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if pid, err := Named(path); pid != want || (err == nil) != (want != 0) {
			t.Errorf("%q names %d, %v; want %d", text, pid, err, want)
		}
	}
}
