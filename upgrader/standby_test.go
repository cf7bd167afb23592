//go:build linux

package upgrader

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// newStandby returns a process that stands by. Nobody answers at control.
func newStandby(t *testing.T, control string, more ...func(*process)) *process {
	t.Helper()
	turn, err := fd.NewTurn()
	must(t, err)
	t.Cleanup(func() { turn.Close() })
	// The kernel's wait for a lock would hold up virtual time.
	return newProcess(t, Options{ControlSocket: control}, func(p *process) {
		p.old = servingPIDFile(t, p.path)
		p.generation.Store(2)
		p.predecessor = newFarEnd(p, "predecessor")
		p.r.pred = predecessor{peer: newPeer(p.predecessor, firstChild-1, p.adopt)}
		p.r.turn, p.r.await = turn, func(*os.File) {}
		for _, prepare := range more {
			prepare(p)
		}
	})
}

// wantWaitReturns at once: there is nobody to wait for.
func (p *process) wantWaitReturns() {
	p.t.Helper()
	from := time.Now()
	p.Wait()
	if d := time.Since(from); d > time.Second {
		p.t.Errorf("Wait took %v", d)
	}
}

// TestWaitOfAStandby: one that gives up while it looks for who serves, or is
// stopped, has no predecessor to wait for.
func TestWaitOfAStandby(t *testing.T) {
	dir := privateDir(t)
	t.Run("it finds what it cannot take", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := newStandby(t, filepath.Join(dir, "none", "control"))
			p.readyToServe()
			p.predecessor.say(wire.Moved{})
			p.wantState(stopped)
			p.wantWaitReturns()
		})
	})
	t.Run("it is stopped while it looks", func(t *testing.T) {
		for _, ready := range []bool{true, false} {
			bubble(t, func(t *testing.T) {
				p := newStandby(t, filepath.Join(dir, "control"))
				if ready {
					p.readyToServe()
				}
				p.predecessor.end()
				synctest.Wait()
				p.Stop()
				p.wantEnd(stopped, ErrStopped)
				p.wantWaitReturns()
			})
		}
	})
	t.Run("it is stopped and sent away at once", func(t *testing.T) {
		bubbles(t, func(t *testing.T) {
			p := newStandby(t, filepath.Join(dir, "control"))
			p.readyToServe()
			p.sleepUnheard(time.Second, func() {
				p.predecessor.said <- wire.Moved{}
				go p.Stop()
			})
			synctest.Wait()
			p.wantWaitReturns()
		})
	})
}

// TestCommitOfAStandbyIsNone: it does not have what only the committed process
// holds.
func TestCommitOfAStandbyIsNone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newStandby(t, filepath.Join(privateDir(t), "control"))
		p.readyToServe()
		p.predecessor.say(wire.Commit{})
		p.wantState(waiting)
		p.wantOpen(false)
		p.predecessor.end()
		synctest.Wait()
		p.wantState(waiting)
	})
}

// comes makes a standby that has been given everything come to the queue.
func (p *process) comes(given []wire.Socket) *farEnd {
	p.t.Helper()
	f := newFarEnd(p, "standby")
	p.t.Cleanup(f.end)
	p.enlisted <- &standby{
		successor: &successor{
			peer: newPeer(f, firstChild, nil), exited: make(chan struct{}), signal: func(os.Signal) error { return nil },
			given: given, stranger: &stranger{},
		},
		promoted: make(chan struct{}), relayed: make(chan struct{}),
	}
	synctest.Wait()
	return f
}

// TestStandbyOfOtherSocketsIsSentAway, also if they have changed while it was on
// its way.
func TestStandbyOfOtherSocketsIsSentAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		f := p.comes([]wire.Socket{{Name: "gone since", Kind: kindFile}})
		wantHears[wire.Moved](f)
		f.wantClosed()
	})
}

// TestStandbyThatComesTooLate is told whether to ask again.
func TestStandbyThatComesTooLate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		_, s := p.upgrade(PhaseProbation)
		p.order(order{})
		wantHears[wire.Moved](p.comes(p.sockets.metas()))
		s.exit()
	})
	bubble(t, func(t *testing.T) {
		p := newServing(t, Options{})
		_, s := p.upgrade(PhaseProbation)
		p.Stop()
		p.wantState(stopped)
		wantHears[wire.Stopping](p.comes(p.sockets.metas()))
		s.exit()
	})
}

// TestTurnOfAnotherLine: a standby that was not ready when the service died, and
// finds one that was started anew, waits for the lock of that one.
func TestTurnOfAnotherLine(t *testing.T) {
	var turns []*os.File
	for range 2 {
		lock, err := fd.NewTurn()
		must(t, err)
		defer lock.Close()
		for range 2 {
			turn, err := fd.WaitingFor(lock)
			must(t, err)
			defer turn.Close()
			turns = append(turns, turn)
		}
	}
	mine, same, other, again := turns[0], turns[1], turns[2], turns[3]
	awaited := make(chan *os.File, 1)
	r := &run{turn: mine, await: func(f *os.File) { awaited <- f }}
	closed := func(f *os.File) bool { _, err := f.Stat(); return err != nil }
	if r.waitFor(same); r.turn != mine || !closed(same) || closed(mine) {
		t.Error("the same lock is not kept")
	}
	if r.waitFor(nil); r.turn != mine {
		t.Error("one that gives no lock takes it away")
	}
	if r.waitFor(other); r.turn != other || !closed(mine) || closed(other) {
		t.Error("another lock does not take its place")
	}
	if r.waitFor(again); r.turn != other || len(awaited) > 0 {
		t.Error("it is awaited before this process is ready")
	}
	r.awaited = true
	first, err := fd.NewTurn()
	must(t, err)
	defer first.Close()
	if r.waitFor(first); <-awaited != first || closed(other) {
		t.Error("it is not awaited, or the former was closed under its waiter")
	}
}

// TestWatchdog: who is watched by a manager of its own says that it is alive from
// the start on, and switches that off when it drains and is not to be stopped.
func TestWatchdog(t *testing.T) {
	t.Run("a standby", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			var heard *told
			p := newStandby(t, filepath.Join(privateDir(t), "control"), func(p *process) { heard = p.listens(true, 10*time.Second) })
			p.readyToServe()
			heard.want(t, "READY=1 STATUS=standing by to be generation 2", "WATCHDOG=1")
			time.Sleep(20*time.Second + 1)
			heard.want(t, "WATCHDOG=1", "WATCHDOG=1")
		})
	})
	t.Run("what is rolled back", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p, heard := managedSuccessor(t, true)
			p.readyToServe()
			p.commit()
			p.predecessor.say(wire.Abort{Reason: "no"})
			p.wantEnd(stopped, ErrRolledBack)
			heard.want(t, "WATCHDOG_USEC=0")
		})
	})
	t.Run("what is replaced by another unit's process", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			heard := new(told)
			m := manager{main: true, interval: time.Second, send: heard.hear}
			m.left(2, 99)
			heard.want(t, "READY=1 STATUS=draining: generation 2, process 99, has taken over", "WATCHDOG_USEC=0")
		})
	})
	t.Run("the first process", func(t *testing.T) {
		address := filepath.Join(t.TempDir(), "notify")
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
		must(t, err)
		defer c.Close()
		t.Setenv(envNotify, address)
		t.Setenv(envWatchdog, "60000000")
		t.Setenv(envWatchdogPID, strconv.Itoa(os.Getpid()))
		u, err := New(Options{})
		must(t, err)
		defer u.Stop()
		must(t, c.SetReadDeadline(time.Now().Add(patience)))
		b := make([]byte, 100)
		if n, err := c.Read(b); err != nil || string(b[:n]) != "WATCHDOG=1" {
			t.Errorf("the first word is %q, %v", b[:n], err)
		}
	})
}
