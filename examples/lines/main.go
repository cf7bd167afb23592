// Lines is a server for a line protocol over raw TCP. It answers each line, and
// its clients keep their connections through every upgrade: they cannot tell
// that the process behind them was replaced.
//
// How it drains. After an upgrade a connection that is at rest is handed over
// to the new process. At rest means: no Read is under way, no part of a line was
// read, and every line that was read is answered. A Read that waits for a client
// is interrupted by a deadline in the past, which takes nothing out of the
// socket. A connection in the middle of a line is handed over after its answer.
// Where the hand-over fails, because the new process has no descriptor left
// for example, the connection stays here, and each answer is followed by
// another attempt.
//
// What is limited. A connection without a line for -idle is closed, in a drain
// as ever. The drain ends at up.Hurry: after Options.DrainTimeout, or at a second
// SIGTERM. What is left is closed then. In a real stop there is nobody to hand
// anything to: connections at rest are closed at once, and because this protocol
// has no word for goodbye, a line that is on its way at that moment is lost.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-handover/handover/upgrader"
)

var (
	listen    = flag.String("listen", "127.0.0.1:7007", "`address` to serve on")
	pidfile   = flag.String("pidfile", "", "`file` that names the process that serves")
	probation = flag.Duration("probation", upgrader.DefaultProbation, "how long the old process can take the service back")
	idle      = flag.Duration("idle", time.Minute, "how long a connection may wait for a line")
)

func main() {
	flag.Parse()
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if err := run(log); !errors.Is(err, upgrader.ErrUpgraded) && !errors.Is(err, upgrader.ErrStopped) {
		log.Error("failed", "err", err)
		os.Exit(1)
	}
}

func run(log *slog.Logger) error {
	ctx := context.Background()
	up, err := upgrader.New(upgrader.Options{PIDFile: *pidfile, Probation: *probation, Logger: log})
	if err != nil {
		return err
	}
	if err := up.HandleSignals(ctx, upgrader.Signals{}); err != nil {
		return err
	}
	ln, err := up.Listen(ctx, "lines", "tcp", *listen)
	if err != nil {
		return err
	}
	log = log.With("pid", os.Getpid(), "generation", up.Generation())
	log.Info("listening", "addr", ln.Addr().String())

	draining, drain := context.WithCancel(ctx)
	defer drain()
	s := &server{up: up, ln: ln, draining: draining}
	s.running.Go(s.accept) // Accept blocks until this process is committed
	if err := up.Ready(); err != nil {
		return err
	}

	<-up.Done()
	_ = ln.Close() // the socket lives on in the new process
	drain()
	ended := make(chan struct{})
	go func() { s.running.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-up.Hurry(): // the end of the process closes the rest
	}
	log.Info("drained", "handed_over", s.handedOver.Load())
	up.Wait() // an older generation may still hand connections over through this one
	return up.Err()
}

type server struct {
	up         *upgrader.Upgrader
	ln         net.Listener
	draining   context.Context
	running    sync.WaitGroup // accept and all connections
	handedOver atomic.Int64
}

func (s *server) accept() {
	for {
		c, err := s.ln.Accept()
		switch {
		case err == nil:
			s.running.Go(func() { s.serve(c) })
		case errors.Is(err, net.ErrClosed):
			return
		default: // no descriptors left, for example: a connection may end meanwhile
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// serve reads and answers, in one goroutine: where it looks whether the
// connection is at rest, no Read is under way.
func (s *server) serve(c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(s.draining, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })()
	in := bufio.NewReader(c)
	var line []byte
	for {
		// First the deadline, then the look whether it is time to leave: a drain that
		// begins in between sets its own, later, and interrupts the Read. In the
		// other order this deadline would undo the interruption.
		limit := time.Now().Add(*idle)
		if err := c.SetDeadline(limit); err != nil {
			return
		}
		if s.draining.Err() != nil && len(line)+in.Buffered() == 0 && s.leave(c) {
			return
		}
		part, err := in.ReadSlice('\n')
		line = append(line, part...) // an interrupted Read may have brought the beginning
		switch {
		case err == nil:
			if _, err := fmt.Fprintf(c, "%d %s", s.up.Generation(), line); err != nil {
				return
			}
			line = line[:0]
		case !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(limit):
			return // the client's end, a line that is too long, or idle
		}
	}
}

// leave ends this process's part in a connection at rest. It reports false if
// the connection has to stay.
func (s *server) leave(c net.Conn) bool {
	if !errors.Is(s.up.Err(), upgrader.ErrUpgraded) {
		return true
	}
	ln, ok := s.ln.(*upgrader.Listener) // as up.Listen says
	if !ok || ln.HandOver(c) != nil {
		return false
	}
	s.handedOver.Add(1)
	return true
}
