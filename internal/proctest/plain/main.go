// Plain is cmd/demo with the drain of net/http: it upgrades itself by upgrader,
// and leaves with http.Server.Shutdown. What its clients lose is what httpgrace
// is measured by.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/go-handover/handover/internal/site"
	"github.com/go-handover/handover/upgrader"
)

// version is set with -ldflags "-X main.version=…".
var version = "plain"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "plain:", err)
		os.Exit(1)
	}
}

// config has the flags of cmd/demo.
type config struct {
	upgrader  upgrader.Options
	addresses []string
	tls       string
}

func parse(args []string) (config, error) {
	var c config
	f := flag.NewFlagSet("plain", flag.ContinueOnError)
	f.Func("listen", "", func(s string) error { c.addresses = append(c.addresses, s); return nil })
	f.StringVar(&c.tls, "tls", "", "")
	f.StringVar(&c.upgrader.PIDFile, "pidfile", "", "")
	f.DurationVar(&c.upgrader.Probation, "probation", upgrader.DefaultProbation, "")
	f.DurationVar(&c.upgrader.DrainTimeout, "drain-timeout", upgrader.DefaultDrainTimeout, "")
	f.DurationVar(&c.upgrader.ReadyTimeout, "ready-timeout", upgrader.DefaultReadyTimeout, "")
	f.IntVar(&c.upgrader.MaxDraining, "max-draining", upgrader.DefaultMaxDraining, "")
	f.String("log", "", "it is always JSON")
	return c, f.Parse(args)
}

func run(args []string) error {
	c, err := parse(args)
	if err != nil {
		return err
	}
	log := slog.New(zerolog.NewSlogHandler(zerolog.New(os.Stderr)))
	c.upgrader.Logger = log
	up, err := upgrader.New(c.upgrader)
	if err != nil {
		return err
	}
	if err := up.HandleSignals(context.Background(), upgrader.Signals{}); err != nil {
		return err
	}
	srv := &http.Server{
		Handler:           site.Handler(up.Generation(), version),
		Protocols:         site.Protocols(),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	if srv.TLSConfig, err = site.SelfSigned(); err != nil {
		return err
	}
	if err := serve(up, srv, c, log); err != nil {
		return err
	}
	if err := up.Ready(); err != nil {
		return err
	}
	<-up.Done()
	shutdown(up, srv, c.upgrader.DrainTimeout, log)
	up.Wait()
	if err := up.Err(); !errors.Is(err, upgrader.ErrUpgraded) && !errors.Is(err, upgrader.ErrStopped) {
		return err
	}
	return nil
}

// serve names the sockets as cmd/demo does.
func serve(up *upgrader.Upgrader, srv *http.Server, c config, log *slog.Logger) error {
	var addrs []any
	open := func(name, address string, serve func(net.Listener) error) error {
		network := "tcp"
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			network, address = "unix", path
		}
		ln, err := up.Listen(context.Background(), name, network, address)
		if err != nil {
			return err
		}
		addrs = append(addrs, name, ln.Addr().String())
		go func() {
			if err := serve(ln); !errors.Is(err, http.ErrServerClosed) {
				log.Error("serve", "err", err)
			}
		}()
		return nil
	}
	for i, address := range c.addresses {
		if err := open(fmt.Sprintf("http-%d", i), address, srv.Serve); err != nil {
			return err
		}
	}
	if c.tls != "" {
		overTLS := func(ln net.Listener) error { return srv.ServeTLS(ln, "", "") }
		if err := open("tls", c.tls, overTLS); err != nil {
			return err
		}
	}
	log.Info("listening", addrs...)
	return nil
}

// shutdown is what the documentation of net/http says to do.
func shutdown(up *upgrader.Upgrader, srv *http.Server, limit time.Duration, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	go func() {
		select {
		case <-up.Hurry():
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := srv.Shutdown(ctx); err != nil {
		log.Warn("drain cut short", "err", errors.Join(err, srv.Close()))
	}
}
