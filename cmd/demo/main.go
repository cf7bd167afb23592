// Demo is a small HTTP server that upgrades itself: the reference for how a
// program embeds upgrader and httpgrace. All that concerns the upgrade is in
// this file, and in state.go what goes on in the next process.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-handover/handover/httpgrace"
	"github.com/go-handover/handover/internal/site"
	"github.com/go-handover/handover/upgrader"
)

// version is set with -ldflags "-X main.version=…".
var version = "dev"

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	os.Exit(exitCode(err))
}

// run returns when this process has nothing left to answer: after a stop, or
// when another process is the server.
func run(args []string, stdout, stderr io.Writer) error {
	c, err := parse(args, stdout)
	if err != nil || c.nothingToServe {
		return err
	}
	log := newLogger(c.log, stderr)

	// First of all: a successor takes over what it has inherited.
	up, err := upgrader.New(upgrader.Options{
		PIDFile:       c.pidfile,
		ControlSocket: c.control,
		TakeOver:      c.takeOver,
		Standby:       c.standby,
		Version:       version,
		ReadyTimeout:  c.readyTimeout,
		Probation:     c.probation,
		DrainTimeout:  c.drainTimeout,
		MaxDraining:   c.maxDraining,
		Logger:        log,
	})
	if err != nil {
		return err
	}
	if err := up.HandleSignals(context.Background(), upgrader.Signals{}); err != nil {
		return err
	}
	log = log.With("pid", os.Getpid())
	listeners, err := listen(up, c, log)
	if err != nil {
		return err // the predecessor, if there is one, serves on
	}
	var known knowledge
	if err := known.takeOver(up, c.keepCache); err != nil {
		return err
	}
	srv, err := newServer(up, &known, c, log)
	if err != nil {
		return err
	}
	up.CountConnections(func() int { return srv.Stats().Total() })

	// Accept blocks until this process is committed.
	served := make(chan error, 1)
	go func() { served <- srv.ServeUntil(up.Done(), listeners...) }()

	if !known.warm {
		warmUp(up, c.readyDelay)
	}
	if err := up.Ready(); err != nil {
		up.Fail(err)
		return errors.Join(unlessDeliberate(err), <-served)
	}

	err = <-served
	if up.Err() == nil { // it was not asked to end
		up.Fail(err)
		return err
	}
	if err != nil { // the limit was reached: not a reason to fail
		log.Warn("drain cut short", "generation", up.Generation(), "err", err)
	}
	s := srv.Stats()
	log.Info("drained", "generation", up.Generation(), "handed_over", s.HandedOver, "closed_idle", s.ClosedIdle, "late", s.Late, "forced", s.Forced.Total())
	up.Wait() // an older generation may still need this one
	return unlessDeliberate(up.Err())
}

// listen opens the sockets, or takes them over. Each has a name, by which the
// next version of this program finds it again.
func listen(up *upgrader.Upgrader, c config, log *slog.Logger) ([]net.Listener, error) {
	var listeners []net.Listener
	var addrs []any
	open := func(name, address string, wrap func(net.Listener) net.Listener) error {
		network := "tcp"
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			network, address = "unix", path
		}
		ln, err := up.Listen(context.Background(), name, network, address)
		if err == nil {
			listeners = append(listeners, wrap(ln))
			addrs = append(addrs, name, ln.Addr().String())
		}
		return err
	}
	asIs := func(ln net.Listener) net.Listener { return ln }
	for i, address := range c.listen {
		if err := open(fmt.Sprintf("http-%d", i), address, asIs); err != nil {
			return nil, err
		}
	}
	if c.tls != "" {
		if err := open("tls", c.tls, httpgrace.TLS); err != nil {
			return nil, err
		}
	}
	log.Info("listening", append(addrs, "generation", up.Generation())...)
	return listeners, nil
}

func newServer(up *upgrader.Upgrader, known *knowledge, c config, log *slog.Logger) (*httpgrace.Server, error) {
	mux := http.NewServeMux()
	srv := &httpgrace.Server{
		Server: &http.Server{
			Handler:           known.serve(mux),
			Protocols:         site.Protocols(),
			ReadHeaderTimeout: 10 * time.Second,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
		DrainTimeout: c.drainTimeout,
		LameDuck:     c.lameDuck,
		Hurry:        up.Hurry(),
	}
	// A standby knows its generation once it is promoted: no request comes before.
	pages := sync.OnceValue(func() http.Handler { return site.Handler(up.Generation(), version) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { pages().ServeHTTP(w, r) })
	mux.Handle("/healthz/", srv.Health())
	if c.tls == "" {
		return srv, nil
	}
	var err error
	srv.TLSConfig, err = site.SelfSigned()
	return srv, err
}

// warmUp stands for what a real program does before it can serve: fill caches,
// connect to databases. The predecessor waits as long as it hears of progress.
func warmUp(up *upgrader.Upgrader, delay time.Duration) {
	ready := time.After(delay)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	begun := time.Now()
	for {
		select {
		case <-ready:
			return
		case <-up.Done():
			return
		case <-tick.C:
			up.Progress(fmt.Sprintf("warming up for %v of %v", time.Since(begun).Round(time.Second), delay))
		}
	}
}

// unlessDeliberate drops err if it is what was asked for.
func unlessDeliberate(err error) error {
	if errors.Is(err, upgrader.ErrUpgraded) || errors.Is(err, upgrader.ErrStopped) {
		return nil
	}
	return err
}
