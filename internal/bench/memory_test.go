//go:build linux

package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/upgrader"
)

// BenchmarkMemory compares two processes that serve one listener, with and
// without an Upgrader, after a garbage collection: heap and stacks that are in
// use, and goroutines. The Upgrader's is looked at in the first generation and
// in the second, whose predecessor has gone.
func BenchmarkMemory(b *testing.B) {
	var first, second, goroutines1, goroutines2 []int
	for b.Loop() {
		plain := start(b, "bare")
		without := plain.use(b)
		plain.end()

		c := start(b, "upgrader")
		with := c.use(b)
		first = append(first, with.bytes-without.bytes)
		goroutines1 = append(goroutines1, with.goroutines-without.goroutines)

		if err := c.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			b.Fatal(err)
		}
		select {
		case <-c.ended:
		case <-time.After(patience):
			b.Fatalf("not replaced in %v", patience)
		}
		with = c.use(b)
		second = append(second, with.bytes-without.bytes)
		goroutines2 = append(goroutines2, with.goroutines-without.goroutines)
		c.end()
	}
	middle := func(n []int) float64 { return float64(slices.Sorted(slices.Values(n))[len(n)/2]) }
	b.ReportMetric(middle(first)/1024, "first-KiB")
	b.ReportMetric(middle(goroutines1), "first-goroutines")
	b.ReportMetric(middle(second)/1024, "second-KiB")
	b.ReportMetric(middle(goroutines2), "second-goroutines")
	b.ReportMetric(0, "ns/op")
}

type use struct{ bytes, goroutines int }

// use asks the child.
func (c *child) use(b *testing.B) use {
	b.Helper()
	var u use
	if _, err := fmt.Sscan(c.ask(b, "use"), &u.bytes, &u.goroutines); err != nil {
		b.Fatal(err)
	}
	return u
}

// bare is a server without an Upgrader, which stops when it is told.
func bare([]string) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	return serve(ln, ctx.Done())
}

// upgradable is the same server with one.
func upgradable([]string) error {
	u, err := upgrader.New(upgrader.Options{Probation: -1})
	if err != nil {
		return err
	}
	ln, err := u.Listen(context.Background(), "main", "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := u.HandleSignals(context.Background(), upgrader.Signals{}); err != nil {
		return err
	}
	if err := u.Ready(); err != nil {
		return err
	}
	return serve(ln, u.Done())
}

// serve accepts, and tells for each line of standard input what this process
// uses, until that ends or done is closed.
func serve(ln net.Listener, done <-chan struct{}) error {
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	go func() {
		<-done
		os.Exit(0) // nothing is in flight, and the read below does not end
	}()
	in := bufio.NewReader(os.Stdin)
	for {
		if _, err := in.ReadString('\n'); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		runtime.GC()
		runtime.GC() // the second one frees what the first one's finalizers kept
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Println(m.HeapAlloc+m.StackInuse, runtime.NumGoroutine())
	}
}
