//go:build linux

package upgrader

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// crowd makes so many new connections a second, and asks a question on each.
type crowd struct {
	addr                    string
	refused, lost, answered atomic.Int64
	changes                 atomic.Int64 // odd: one is under way
	forNothing              atomic.Int64 // lost, and nobody had died since they were made
	example                 atomic.Value

	mu      sync.Mutex
	waiting int // for the first answer of a process that is not this one
	first   chan time.Time

	stop chan struct{}
	wg   sync.WaitGroup
}

func gather(tb testing.TB, addr string, perSecond int) *crowd {
	tb.Helper()
	c := &crowd{addr: addr, stop: make(chan struct{})}
	c.wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		begun, made := time.Now(), 0
		for {
			select {
			case <-c.stop:
				return
			case <-tick.C: // late ones are made up for
				for due := int(time.Since(begun).Seconds() * float64(perSecond)); made < due; made++ {
					c.wg.Go(c.ask)
				}
			}
		}
	})
	tb.Cleanup(c.end)
	return c
}

func (c *crowd) end() {
	select {
	case <-c.stop:
	default:
		close(c.stop)
	}
	c.wg.Wait()
}

func (c *crowd) ask() {
	made := c.changes.Load()
	conn, err := net.Dial("tcp", c.addr)
	if err != nil {
		c.refused.Add(1)
		c.example.Store(err)
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(deadline))
	_, err = fmt.Fprintln(conn, "crowd")
	var answer string
	if err == nil {
		answer, err = bufio.NewReader(conn).ReadString('\n')
	}
	if err != nil {
		c.lost.Add(1)
		if made%2 == 0 && c.changes.Load() == made {
			c.forNothing.Add(1)
		}
		c.example.Store(fmt.Errorf("%w, from %v", err, conn.LocalAddr()))
		return
	}
	c.answered.Add(1)
	pid := 0
	_, _ = fmt.Sscan(answer, &pid)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first != nil && pid != c.waiting {
		c.first <- time.Now()
		c.first = nil
	}
}

// other returns the time of the first answer from another process than pid.
func (c *crowd) other(pid int) <-chan time.Time {
	first := make(chan time.Time, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting, c.first = pid, first
	return first
}

// more waits for so many more answers.
func (c *crowd) more(n int64) {
	for want := c.answered.Load() + n; c.answered.Load() < want; {
		time.Sleep(time.Millisecond)
	}
}

// change ends or replaces the process that serves by a signal, and returns how
// long it took until the standby answered.
func (c *crowd) change(s *service, sig syscall.Signal) time.Duration {
	s.t.Helper()
	old, st, from := s.pidfile(), s.standBy(), s.mark()
	c.more(100)
	c.changes.Add(1)
	defer c.changes.Add(1)
	first, begun := c.other(old), time.Now()
	s.signal(old, sig)
	took := (<-first).Sub(begun)
	s.promoted(from, st.Process.Pid)
	s.gone(old)
	return took
}

const connectionsPerSecond = 1500

// TestActiveKilledUnderLoad: 1,500 new connections a second, and the process
// that serves is killed again and again. Nobody is refused; what is lost is what
// that process had accepted.
func TestActiveKilledUnderLoad(t *testing.T) {
	s := withStandbys(t)
	s.config.Quiet = true
	s.start()
	c := gather(t, s.addr("main"), connectionsPerSecond)
	begun := time.Now()
	const kills = 50
	for range kills {
		c.change(s, syscall.SIGKILL)
	}
	c.end()
	refused, lost, answered := c.refused.Load(), c.lost.Load(), c.answered.Load()
	t.Logf("%d times killed: %d connections answered (%.0f a second), %d refused, %d lost with the process that had accepted them",
		kills, answered, float64(answered)/time.Since(begun).Seconds(), refused, lost)
	if err, _ := c.example.Load().(error); refused > 0 || errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%d refused: %v", refused, err)
	}
	if n := c.forNothing.Load(); n > 0 || answered < 100*kills { // that many are waited for before each
		t.Errorf("%d answered; %d of %d lost without a kill: %v", answered, n, lost, c.example.Load())
	}
}

// TestDeathIsAsQuickAsPromotion: from the death of the process that serves to
// the first answer of the standby it takes no longer, in order of magnitude, than
// from the signal that promotes it. `make bench` has the figures.
func TestDeathIsAsQuickAsPromotion(t *testing.T) {
	died, promoted := changes(t, 15)
	t.Logf("until the standby's first answer, median: %v after a kill, %v after the signal to promote it", died, promoted)
	if died > 10*promoted {
		t.Errorf("%v after a kill, %v after a promotion", died, promoted)
	}
}

// changes returns medians of how long it takes until the standby answers.
func changes(t *testing.T, n int) (died, promoted time.Duration) {
	t.Helper()
	s := withStandbys(t)
	s.config.Quiet, s.config.Probation = true, -1
	s.start()
	c := gather(t, s.addr("main"), connectionsPerSecond)
	var kills, promotions []time.Duration
	for range n {
		kills = append(kills, c.change(s, syscall.SIGKILL))
		promotions = append(promotions, c.change(s, syscall.SIGUSR1))
	}
	c.end()
	if refused := c.refused.Load(); refused > 0 {
		t.Errorf("%d refused", refused)
	}
	return median(kills), median(promotions)
}
