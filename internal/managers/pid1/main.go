// Pid1 is a server that upgrades itself as PID 1, too: its first process is its
// own supervisor there. It takes the flags of cmd/demo, and logs what tests read.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/rs/zerolog"

	"github.com/go-handover/handover/httpgrace"
	"github.com/go-handover/handover/internal/site"
	"github.com/go-handover/handover/upgrader"
)

// version is set with -ldflags "-X main.version=…".
var version = "dev"

func main() {
	if code, done := upgrader.SupervisePID1(); done {
		os.Exit(code)
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pid1:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	o := upgrader.Options{Logger: slog.New(zerolog.NewSlogHandler(zerolog.New(os.Stderr)))}
	f := flag.NewFlagSet("pid1", flag.ContinueOnError)
	address := f.String("listen", "", "")
	f.StringVar(&o.PIDFile, "pidfile", "", "")
	f.DurationVar(&o.Probation, "probation", 0, "")
	f.DurationVar(&o.DrainTimeout, "drain-timeout", 0, "")
	delay := f.Duration("ready-delay", 0, "")
	f.String("log", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	up, err := upgrader.New(o)
	if err != nil {
		return err
	}
	if err := up.HandleSignals(context.Background(), upgrader.Signals{}); err != nil {
		return err
	}
	ln, err := up.Listen(context.Background(), "http-0", "tcp", *address)
	if err != nil {
		return err
	}
	log := o.Logger.With("pid", os.Getpid(), "generation", up.Generation())
	log.Info("listening")
	srv := &httpgrace.Server{
		Server:       &http.Server{Handler: site.Handler(up.Generation(), version), ReadHeaderTimeout: time.Minute},
		DrainTimeout: o.DrainTimeout, Hurry: up.Hurry(),
	}
	served := make(chan error, 1)
	go func() { served <- srv.ServeUntil(up.Done(), ln) }()
	select {
	case <-time.After(*delay): // a warm-up
	case <-up.Done():
	}
	if err := up.Ready(); err != nil && !errors.Is(err, upgrader.ErrStopped) {
		return err
	}
	err = <-served
	log.Info("drained")
	up.Wait()
	return err
}
