package upgrader_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/go-handover/handover/httpgrace"
	"github.com/go-handover/handover/upgrader"
)

// An HTTP server. Package httpgrace drains it without losing a request.
func Example() {
	ctx := context.Background()
	up, err := upgrader.New(upgrader.Options{PIDFile: "/run/app/app.pid", Logger: slog.Default()})
	if err != nil {
		log.Fatal(err)
	}
	if err := up.HandleSignals(ctx, upgrader.Signals{}); err != nil {
		log.Fatal(err)
	}
	ln, err := up.Listen(ctx, "http", "tcp", ":8080")
	if err != nil {
		log.Fatal(err) // the predecessor, if there is one, serves on
	}

	srv := &httpgrace.Server{
		Server:       &http.Server{Handler: http.DefaultServeMux},
		DrainTimeout: upgrader.DefaultDrainTimeout,
		Hurry:        up.Hurry(),
	}
	served := make(chan error, 1)
	go func() { served <- srv.ServeUntil(up.Done(), ln) }() // its Accept waits at the gate

	if err := up.Ready(); err != nil {
		log.Fatal(err)
	}
	err = <-served // drained
	if up.Err() == nil {
		up.Fail(err) // nobody asked this process to end
	}
	if err != nil {
		log.Fatal(err)
	}
}

// An echo server for lines. In an upgrade it hands idle connections over, so
// that their clients notice nothing, and answers a line that has begun first.
func ExampleListener_HandOver() {
	ctx := context.Background()
	up, err := upgrader.New(upgrader.Options{PIDFile: "/run/app/app.pid"})
	if err != nil {
		log.Fatal(err)
	}
	if err := up.HandleSignals(ctx, upgrader.Signals{}); err != nil {
		log.Fatal(err)
	}
	ln, err := up.Listen(ctx, "echo", "tcp", ":7007")
	if err != nil {
		log.Fatal(err)
	}
	draining, drain := context.WithCancel(ctx)

	serve := func(c net.Conn) {
		defer c.Close()
		wake := context.AfterFunc(draining, func() { c.SetReadDeadline(time.Unix(1, 0)) })
		defer wake()
		in, line := bufio.NewReader(c), ""
		for {
			text, err := in.ReadString('\n')
			line += text
			switch {
			case err == nil:
				io.WriteString(c, line)
				line = ""
			case errors.Is(err, os.ErrDeadlineExceeded): // woken up, to look at what follows
				c.SetReadDeadline(time.Time{})
			default:
				return
			}
			if draining.Err() == nil || line != "" || in.Buffered() > 0 {
				continue
			}
			// Idle: no Read is under way, and everything that was read is answered.
			if errors.Is(up.Err(), upgrader.ErrStopped) || ln.(*upgrader.Listener).HandOver(c) == nil {
				return
			}
		}
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { serve(c) })
		}
	})

	if err := up.Ready(); err != nil {
		log.Fatal(err)
	}
	<-up.Done()
	ln.Close()
	drain()
	drained := make(chan struct{})
	go func() { conns.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-up.Hurry():
	}
}

// A counter goes on from generation to generation. Most of it, here all of it, is
// written before the new process is started, and what has been counted since
// when that is ready.
func ExampleUpgrader_SetState() {
	up, err := upgrader.New(upgrader.Options{PIDFile: "/run/app/app.pid"})
	if err != nil {
		log.Fatal(err)
	}
	var served counter
	switch s, err := up.State("served"); {
	case err == nil:
		err = errors.Join(served.set(s.Bytes()), s.Close())
		if err != nil {
			log.Fatal(err) // the predecessor serves on
		}
	case !errors.Is(err, fs.ErrNotExist): // it is the first process, or the old build had none
		log.Fatal(err)
	}
	err = errors.Join(up.SetState("served", &served), up.OnStateDelta("served", served.set))
	if err != nil {
		log.Fatal(err)
	}
	if err := up.Ready(); err != nil {
		log.Fatal(err)
	}
	<-up.Done()
}

// counter is a state, and its own difference.
type counter struct{ n atomic.Int64 }

func (c *counter) WriteTo(w io.Writer) (int64, error) {
	n, err := fmt.Fprint(w, c.n.Load())
	return int64(n), err
}

func (c *counter) WriteDelta(w io.Writer) error {
	_, err := c.WriteTo(w)
	return err
}

func (c *counter) set(b []byte) error {
	n, err := strconv.ParseInt(string(b), 10, 64)
	c.n.Store(n)
	return err
}

// A large table is never copied: each process maps the memory that the first one
// has written.
func ExampleNewState() {
	up, err := upgrader.New(upgrader.Options{PIDFile: "/run/app/app.pid", ReadyTimeout: time.Minute})
	if err != nil {
		log.Fatal(err)
	}
	table, err := up.State("table")
	if errors.Is(err, fs.ErrNotExist) {
		var f *os.File
		if f, err = os.Open("/var/lib/app/table"); err == nil {
			table, err = upgrader.NewState(f) // an *os.File is an io.WriterTo
		}
	}
	if err != nil {
		log.Fatal(err)
	}
	if err := up.SetState("table", table); err != nil { // as it is, without a copy
		log.Fatal(err)
	}
	lookUp := func(i int) byte { return table.Bytes()[i] }
	_ = lookUp
	if err := up.Ready(); err != nil {
		log.Fatal(err)
	}
	<-up.Done()
}

// The records go to zerolog.
func ExampleOptions_zerolog() {
	logger := zerolog.New(os.Stderr).With().Timestamp().Logger()
	up, err := upgrader.New(upgrader.Options{
		PIDFile: "/run/app/app.pid",
		Logger:  slog.New(zerolog.NewSlogHandler(logger)),
	})
	if err != nil {
		logger.Fatal().Err(err).Send()
	}
	logger.Info().Int("generation", up.Generation()).Msg("started")
}

// A group of actors: the first one that returns stops the others. The
// Upgrader is one of them.
func Example_group() {
	type actor struct {
		run  func() error // returns when the actor has ended
		stop func(error)  // makes run return
	}
	ctx := context.Background()
	up, err := upgrader.New(upgrader.Options{PIDFile: "/run/app/app.pid"})
	if err != nil {
		log.Fatal(err)
	}
	if err := up.HandleSignals(ctx, upgrader.Signals{}); err != nil {
		log.Fatal(err)
	}
	ln, err := up.Listen(ctx, "http", "tcp", ":8080")
	if err != nil {
		log.Fatal(err)
	}
	srv := &httpgrace.Server{Server: &http.Server{}, Hurry: up.Hurry()}
	stopServer := make(chan struct{})

	actors := []actor{
		{
			run: func() error {
				if err := up.Ready(); err != nil {
					return err
				}
				<-up.Done()
				return up.Err()
			},
			stop: func(err error) {
				if up.Err() == nil { // after Done, Fail would mean hurry
					up.Fail(err)
				}
			},
		},
		{
			run:  func() error { return srv.ServeUntil(stopServer, ln) },
			stop: func(error) { close(stopServer) },
		},
	}

	ended := make(chan error, len(actors))
	for _, a := range actors {
		go func() { ended <- a.run() }()
	}
	first := <-ended
	for _, a := range actors {
		a.stop(first)
	}
	for range len(actors) - 1 {
		<-ended
	}
	if !errors.Is(first, upgrader.ErrUpgraded) && !errors.Is(first, upgrader.ErrStopped) {
		log.Fatal(first)
	}
}

// A binary that was not copied to its end, or is another program, or that others
// could have put there, is not started.
func ExamplePreflights() {
	up, err := upgrader.New(upgrader.Options{
		PIDFile:   "/run/app/app.pid",
		Preflight: upgrader.Preflights(upgrader.PreflightOwner, upgrader.PreflightProgram, upgrader.PreflightSHA256(nil)),
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := up.Ready(); err != nil {
		log.Fatal(err)
	}
	<-up.Done()
}
