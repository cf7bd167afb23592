//go:build linux

package upgrader

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// This file is the program that the process tests run: this test binary,
// executed again.

const envProgram = "UPGRADER_TEST_CONFIG"

// envComes tells a process that nobody has started as a successor what the test
// takes it for: the generation, and its predecessor.
const envComes = "UPGRADER_TEST_COMES"

// config is what one generation of the program does. The file is read anew by
// each generation, so a test changes it between two upgrades.
type config struct {
	PIDFile   string `json:"pidfile,omitempty"`
	Control   string `json:"control,omitempty"`
	Probation int    `json:"probation_ms,omitempty"`
	Ready     int    `json:"ready_timeout_ms,omitempty"`
	Drain     int    `json:"drain_timeout_ms,omitempty"`
	Max       int    `json:"max_draining,omitempty"`
	Listen    [][3]string
	Faults    []fault   `json:"faults,omitempty"`
	Exe       string    `json:"exe,omitempty"`
	Check     string    `json:"check,omitempty"`
	Preflight string    `json:"preflight,omitempty"` // read anew when it is due
	Swap      [2]string `json:"swap,omitempty"`      // what a preflight renames, and to what

	Chdir      string `json:"chdir,omitempty"`       // after New
	CloseStdio bool   `json:"close_stdio,omitempty"` // standard input and output, after New
	Spawn      bool   `json:"spawn,omitempty"`       // a subprocess at each point, which looks around
	Kinds      bool   `json:"kinds,omitempty"`       // a socket of every kind, and a file
	Many       int    `json:"many,omitempty"`        // so many more listeners, and so many files
	Quiet      bool   `json:"quiet,omitempty"`       // no clock that acts later

	States *statesConfig `json:"states,omitempty"`
}

// fault is what a process of one generation does at a point of an upgrade.
type fault struct {
	Generation int
	Point      string
	Action     string // exit0, exit1, panic, kill, stop (SIGSTOP), hang, term (SIGTERM to itself), fail
}

func TestMain(m *testing.M) {
	if path := os.Getenv(envStranger); path != "" {
		askAsStranger(path)
		os.Exit(0)
	}
	if os.Getenv(envLook) != "" {
		lookAround()
		os.Exit(0)
	}
	if path := os.Getenv(envProgram); path != "" {
		if err := program(path); err != nil {
			slog.New(slog.NewJSONHandler(os.Stderr, nil)).Error("program failed", "pid", os.Getpid(), "err", err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// mainAddress is what the check dials.
var mainAddress atomic.Value

func readConfig(path string) (config, error) {
	var c config
	b, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(b, &c)
}

// generationOf tells what New will: a fault can come before it.
func generationOf() (generation, predecessor int) {
	if v, found := os.LookupEnv(envComes); found {
		_ = os.Unsetenv(envComes)
		if n, _ := fmt.Sscan(v, &generation, &predecessor); n == 2 {
			return generation, predecessor
		}
	}
	e, ok, err := parseEnv(os.LookupEnv)
	if !ok || err != nil {
		return 1, 0
	}
	return e.generation, e.predecessor
}

func program(path string) error {
	c, err := readConfig(path)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	generation, predecessor := generationOf()
	act := func(point string) {
		if c.States != nil && c.States.Points {
			log.Info("point", "pid", os.Getpid(), "generation", generation, "point", point, "at", time.Now())
		}
		if c.Spawn && point != "start" && point != "hello" && !strings.HasSuffix(point, "ms") {
			spawn(filepath.Dir(path), point, generation, log)
		}
		// Faults are read when they are due, so that one can be planted in a
		// process that runs already.
		var now config
		var err error
		hoarded.spare(func() { now, err = readConfig(path) })
		if err != nil {
			log.Error("config", "pid", os.Getpid(), "err", err.Error())
		}
		for _, f := range now.Faults {
			if f.Generation == generation && f.Point == point {
				log.Info("fault", "pid", os.Getpid(), "generation", generation, "point", point, "action", f.Action)
				f.happen(predecessor)
			}
		}
	}
	act("start")
	o := c.options(log)
	if c.Preflight != "" {
		o.Preflight = preflightOf(path, log)
	}
	u, err := open(o, act)
	if err != nil {
		return err
	}
	if err := u.HandleSignals(context.Background(), Signals{}); err != nil {
		return err
	}
	act("new")
	if err := c.prepare(log); err != nil {
		return err
	}
	s := &lineServer{u: u, log: log}
	for _, l := range c.Listen {
		if err := s.listen(l[0], l[1], l[2]); err != nil {
			u.Fail(err)
			return err
		}
	}
	dir := filepath.Dir(path)
	if c.Kinds {
		closers, err := openKinds(u, &s.wg, dir, log)
		if err != nil {
			u.Fail(err)
			return err
		}
		s.closers = closers
	}
	if c.Many > 0 {
		if err := openMany(u, dir, c.Many, log); err != nil {
			u.Fail(err)
			return err
		}
	}
	if c.States != nil {
		if err := c.States.open(u, path, log); err != nil {
			u.Fail(err)
			return err
		}
	}
	act("listen")
	if err := u.Ready(); err != nil {
		return err
	}
	log.Info("ready", "pid", os.Getpid(), "generation", u.Generation())
	if !c.Quiet {
		go act("ran 0s")
		c.actLater(act)
	}
	<-u.Done()
	log.Info("done", "pid", os.Getpid(), "generation", u.Generation(), "err", u.Err().Error())
	s.drain()
	log.Info("drained", "pid", os.Getpid(), "generation", u.Generation())
	u.Wait()
	return nil
}

// actLater acts at times that tests of probation need.
func (c config) actLater(act func(string)) {
	for _, ms := range []int{50, 100, 200, 1000, 4000} {
		time.AfterFunc(time.Duration(ms)*time.Millisecond, func() { act(fmt.Sprintf("ran %dms", ms)) })
	}
}

// prepare does what programs do between New and Listen.
func (c config) prepare(log *slog.Logger) error {
	if c.CloseStdio {
		stdin, _ := os.Readlink("/proc/self/fd/0")
		stdout, _ := os.Readlink("/proc/self/fd/1")
		log.Info("stdio", "pid", os.Getpid(), "stdin", stdin, "stdout", stdout)
		if err := errors.Join(os.Stdin.Close(), os.Stdout.Close()); err != nil {
			return err
		}
	}
	if c.Chdir != "" {
		return os.Chdir(c.Chdir)
	}
	return nil
}

func (c config) options(log *slog.Logger) Options {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	o := Options{
		PIDFile: c.PIDFile, ControlSocket: c.Control, Probation: ms(c.Probation), ReadyTimeout: ms(c.Ready), DrainTimeout: ms(c.Drain),
		MaxDraining: c.Max, Executable: c.Exe, Logger: log,
	}
	o.StateChecksum = c.States != nil && c.States.Sum
	switch c.Check {
	case "bad":
		o.Check = func(context.Context) error { return errors.New("the check says no") }
	case "dial":
		o.Check = func(ctx context.Context) error { return dialCheck(ctx, mainAddress.Load().(string)) }
	case "hang":
		o.Check = func(context.Context) error { select {} }
	case "good":
		o.Check = func(context.Context) error { return nil }
	}
	return o
}

func (f fault) happen(predecessor int) {
	self := func(s syscall.Signal) { _ = syscall.Kill(os.Getpid(), s) }
	switch f.Action {
	case "exit0":
		os.Exit(0)
	case "exit1":
		os.Exit(1)
	case "panic":
		panic("a fault was planted here")
	case "kill":
		self(syscall.SIGKILL)
		select {}
	case "usr1":
		dieOfUSR1()
	case "usr1 once":
		if os.Mkdir(os.Getenv(envProgram)+".once", 0o700) == nil {
			dieOfUSR1()
		}
	case "stop":
		stopHere()
	case "term":
		self(syscall.SIGTERM)
	case "hang":
		select {}
	case "count":
		counter.Add(1)
	case "fill descriptors":
		hoarded.fill()
	case "free descriptors":
		hoarded.free()
	case "kill predecessor":
		_ = syscall.Kill(predecessor, syscall.SIGKILL)
	case "term predecessor":
		_ = syscall.Kill(predecessor, syscall.SIGTERM)
	}
}

// dieOfUSR1 ends the process as that signal does before Go's runtime has come to
// handle it: what executes a shell has no handler any more.
func dieOfUSR1() {
	panic(syscall.Exec("/bin/sh", []string{"sh", "-c", "kill -USR1 $$"}, os.Environ()))
}

// stopHere stops the process before it returns: a signal to the thread is
// handled on its way out of the system call, one to the process somewhere.
func stopHere() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_, _, _ = syscall.Syscall(syscall.SYS_TGKILL, uintptr(os.Getpid()), uintptr(syscall.Gettid()), uintptr(syscall.SIGSTOP))
}

// lineServer answers each line with "pid generation line". It hands idle
// connections over when its process is replaced.
type lineServer struct {
	u   *Upgrader
	log *slog.Logger
	lns []net.Listener
	wg  sync.WaitGroup

	closers []interface{ Close() error }
}

func (s *lineServer) listen(name, network, address string) error {
	ln, err := s.u.Listen(context.Background(), name, network, address)
	if err != nil {
		return err
	}
	s.log.Info("listening", "pid", os.Getpid(), "name", name, "addr", ln.Addr().String())
	if name == "main" {
		mainAddress.Store(ln.Addr().String())
	}
	s.lns = append(s.lns, ln)
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.serve(ln, c) })
		}
	})
	return nil
}

// serve reads lines until the end, or until Done finds the connection idle.
func (s *lineServer) serve(ln net.Listener, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(doneContext{s.u}, func() { _ = c.SetReadDeadline(aLongTimeAgo) })
	defer stop()
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && line == "" && r.Buffered() == 0 && s.u.Err() != nil:
			stop()
			_ = c.SetReadDeadline(time.Time{})
			h, ok := ln.(interface{ HandOver(net.Conn) error })
			if !ok {
				return
			}
			err := h.HandOver(c)
			if err == nil {
				return
			}
			s.log.Info("kept", "pid", os.Getpid(), "err", err.Error())
			if errors.Is(s.u.Err(), ErrStopped) {
				return // it is idle, and nobody will take it
			}
		case err != nil:
			return
		}
		var ms int
		if n, _ := fmt.Sscanf(line, "sleep %d", &ms); n == 1 {
			time.Sleep(time.Duration(ms) * time.Millisecond)
		}
		answer := s.u.Generation()
		switch line {
		case "count\n":
			answer = int(counter.Add(1))
		case "read\n":
			answer = int(readLarge())
		}
		if line == "goroutines\n" {
			answer = runtime.NumGoroutine()
		}
		if _, err := fmt.Fprintf(c, "%d %d %s", os.Getpid(), answer, line); err != nil {
			return
		}
	}
}

// drain finishes what is under way: connections end by themselves.
func (s *lineServer) drain() {
	for _, ln := range s.lns {
		_ = ln.Close()
	}
	for _, c := range s.closers {
		_ = c.Close()
	}
	finished := make(chan struct{})
	go func() { s.wg.Wait(); close(finished) }()
	select {
	case <-finished:
	case <-s.u.Hurry():
		s.log.Info("hurried", "pid", os.Getpid())
	}
}

// doneContext is the Upgrader's Done as a context.
type doneContext struct{ u *Upgrader }

func (d doneContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (d doneContext) Done() <-chan struct{}       { return d.u.Done() }
func (d doneContext) Err() error                  { return d.u.Err() }
func (d doneContext) Value(any) any               { return nil }
