// Faulty takes the place of cmd/demo in tests, and fails as it was built to:
//
//	go build -ldflags "-X main.fault=crash-after-ready:1s" ./internal/proctest/faulty
//
// Until then it serves like a good one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/go-handover/handover/internal/site"
	"github.com/go-handover/handover/upgrader"
)

// fault is WHEN, or WHEN:DURATION. The moments at which it panics are
// crash-at-once, crash-before-ready and crash-after-ready; those from which on
// it does nothing more are hang-at-once, hang-before-ready and
// hang-after-ready, the last without accepting anything. With fail-before-ready
// it says why, and exits.
var fault string

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "faulty:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var o upgrader.Options
	var addresses []string
	f := flag.NewFlagSet("faulty", flag.ContinueOnError)
	f.Func("listen", "", func(s string) error { addresses = append(addresses, s); return nil })
	f.StringVar(&o.PIDFile, "pidfile", "", "")
	f.StringVar(&o.ControlSocket, "control", "", "")
	f.DurationVar(&o.Probation, "probation", 0, "")
	f.DurationVar(&o.ReadyTimeout, "ready-timeout", 0, "")
	ignored := f.String("log", "", "")
	f.StringVar(ignored, "drain-timeout", "", "")
	f.StringVar(ignored, "ready-delay", "", "")
	f.StringVar(ignored, "max-draining", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	at("at-once")
	o.Logger = slog.New(zerolog.NewSlogHandler(zerolog.New(os.Stderr)))
	up, err := upgrader.New(o)
	if err != nil {
		return err
	}
	if err := up.HandleSignals(context.Background(), upgrader.Signals{}); err != nil {
		return err
	}
	srv := &http.Server{Handler: site.Handler(up.Generation(), "faulty"), ReadHeaderTimeout: time.Minute}
	for i, address := range addresses {
		network := "tcp"
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			network, address = "unix", path
		}
		ln, err := up.Listen(context.Background(), fmt.Sprintf("http-%d", i), network, address)
		if err != nil {
			return err
		}
		if fault == "hang-after-ready" {
			continue
		}
		go func() { _ = srv.Serve(ln) }() // it will be cut off anyway
	}
	at("before-ready")
	if fault == "fail-before-ready" {
		err := errors.New("as told: " + fault)
		up.Fail(err)
		return err
	}
	if err := up.Ready(); err != nil {
		return err
	}
	at("after-ready")
	<-up.Done()
	return up.Err()
}

// at fails if this is the moment for it.
func at(moment string) {
	what, after, _ := strings.Cut(fault, ":")
	delay, _ := time.ParseDuration(after) // none: at once
	switch what {
	case "crash-" + moment:
		time.Sleep(delay)
		_, _ = io.WriteString(os.Stderr, "as told: ")
		panic(fault)
	case "hang-" + moment:
		select {}
	}
}
