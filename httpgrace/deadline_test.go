package httpgrace

import (
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// readUntil reads with d as conn does and returns how often it looked up before
// the error was not the drain's.
func readUntil(nc net.Conn, d *deadline, looked func(n int)) (lookedUp int, err error) {
	for {
		if _, err = nc.Read(make([]byte, 1)); !d.ours(nc, err) {
			return lookedUp, err
		}
		lookedUp++
		looked(lookedUp)
	}
}

func TestDeadlineOfTheDrainIsNotSeenByNetHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nc, other := net.Pipe()
		defer other.Close()
		var d deadline
		start := time.Now()
		d.ask(nc, start.Add(10*time.Second))
		d.limit(nc, start.Add(3*time.Second))
		time.AfterFunc(time.Second, func() { d.stir(nc) })
		var at []time.Duration
		n, err := readUntil(nc, &d, func(n int) {
			at = append(at, time.Since(start))
			if n == 2 {
				d.limit(nc, time.Time{})
			}
		})
		if n != 2 || at[0] != time.Second || at[1] != 3*time.Second {
			t.Errorf("looked up at %v", at)
		}
		if !isTimeout(err) || time.Since(start) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// What net/http asks for while the reader is being stirred holds afterwards.
func TestDeadlineAskedDuringAStirHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nc, other := net.Pipe()
		defer other.Close()
		var d deadline
		start := time.Now()
		d.stir(nc)
		d.ask(nc, start.Add(time.Second))
		n, err := readUntil(nc, &d, func(int) {})
		if n != 1 || !isTimeout(err) || time.Since(start) != time.Second {
			t.Errorf("looked up %d times, %v after %v", n, err, time.Since(start))
		}
	})
}

func TestDeadlineTakenIsNobodyElses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nc, other := net.Pipe()
		defer other.Close()
		var d deadline
		start := time.Now()
		d.take(nc, start.Add(time.Second))
		d.stir(nc)
		d.ask(nc, start)
		d.limit(nc, start)
		if _, err := nc.Read(make([]byte, 1)); !isTimeout(err) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestDeadlineReleasedIsTheHijackersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nc, other := net.Pipe()
		defer other.Close()
		var d deadline
		start := time.Now()
		d.stir(nc)
		d.release(nc)
		d.stir(nc)
		d.ask(nc, start.Add(time.Second))
		if _, err := nc.Read(make([]byte, 1)); !isTimeout(err) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}
