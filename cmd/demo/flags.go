package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/rs/zerolog"

	"github.com/go-handover/handover/upgrader"
)

const usage = `Usage: demo [flags]

Demo is an HTTP server that replaces itself with the binary that now lies in
the place of its own, and none of its clients notices.

  demo -listen 127.0.0.1:8080 -pidfile app.pid &    start it
  cp demo-v2 new && mv new demo                     put another version in place
  kill -USR1 $(cat app.pid)                         upgrade
  kill $(cat app.pid)                               stop politely; twice: hurry

The new process has taken over when app.pid names it. If it fails, or dies
within the probation, the old one serves on. scripts/deploy.sh does all of it
and waits for the verdict.

It answers
  GET  /                      one line, pid=… generation=… version=…
  POST /echo                  the body
  GET  /slow?ms=N             after N milliseconds
  GET  /stream?ms=N           a line every 10 ms, the last one is end
  GET  /download?ms=N&seed=S  a body of known length, a block every 10 ms
  GET  /cached                a body with an ETag
  POST /trailers              the body in chunks, and the trailer X-Check
  GET  /events                server-sent events, one every 10 ms
  GET  /ws                    a WebSocket that echoes
  GET  /page                  a page that uses most of these, and counts what fails
  GET  /lookup?key=K          what generation looked K up first; slow the first time
  GET  /state                 requests of all generations, entries of the cache
  GET  /heap?mb=N             touches and keeps so much memory
  GET  /healthz/live          ok, as long as the process answers
  GET  /healthz/ready         ok; 503 from when it is told to stop
in HTTP/1 and HTTP/2, the latter in the clear too.

The exit code is 0 after a stop or an upgrade, 1 after a failure, 2 for wrong
usage.

Flags:
`

// config is the command line.
type config struct {
	listen       []string
	tls          string
	pidfile      string
	control      string
	takeOver     upgrader.TakeOver
	standby      bool
	probation    time.Duration
	drainTimeout time.Duration
	lameDuck     time.Duration
	readyTimeout time.Duration
	readyDelay   time.Duration
	keepCache    bool
	maxDraining  int
	log          string

	nothingToServe bool // -h or -version, answered by parse
}

var errUsage = errors.New("run demo -h for help")

func parse(args []string, stdout io.Writer) (config, error) {
	var c config
	var showVersion bool
	f := flag.NewFlagSet("demo", flag.ContinueOnError)
	f.SetOutput(io.Discard) // main reports the error
	f.Func("listen", "`address` to serve HTTP on, host:port or unix:PATH; may be repeated (default 127.0.0.1:8080)",
		func(s string) error { c.listen = append(c.listen, s); return nil })
	f.StringVar(&c.tls, "tls", "", "`address` to serve HTTPS on, with a self-signed certificate")
	f.StringVar(&c.pidfile, "pidfile", "", "`file` that names the process that serves")
	f.StringVar(&c.control, "control", "", "`path` of a socket for upgradectl: status, upgrade with a verdict, roll-back")
	f.Func("takeover", "`whether` a process that somebody else has started takes the sockets from the one at -control: auto, never or require (default auto)",
		func(s string) (err error) { c.takeOver, err = takeOver(s); return err })
	f.BoolVar(&c.standby, "standby", false, "wait, ready, until the process at -control dies or upgradectl promotes this one")
	f.DurationVar(&c.probation, "probation", upgrader.DefaultProbation,
		"how long the old process can take the service back; negative: not at all")
	f.DurationVar(&c.drainTimeout, "drain-timeout", upgrader.DefaultDrainTimeout,
		"how long a process that was replaced or stopped answers what it has accepted")
	f.DurationVar(&c.lameDuck, "lame-duck", 0,
		"how long a process that is stopped serves on, not ready, for load balancers to notice")
	f.DurationVar(&c.readyTimeout, "ready-timeout", upgrader.DefaultReadyTimeout,
		"how long a new process may take until it is ready; progress extends it")
	f.DurationVar(&c.readyDelay, "ready-delay", 0, "simulated warm-up, which fills the cache")
	f.BoolVar(&c.keepCache, "keep-cache", false, "hand the cache on, so that a new process needs no warm-up")
	f.IntVar(&c.maxDraining, "max-draining", upgrader.DefaultMaxDraining,
		"how many replaced generations may drain at once; one more, and the oldest is told to hurry")
	f.StringVar(&c.log, "log", "console", "log format, console or json, on standard error")
	f.BoolVar(&showVersion, "version", false, "print the version and exit")

	err := f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		c.nothingToServe = true
		return c, printHelp(f, stdout)
	case err != nil:
	case f.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", f.Arg(0))
	case c.control == "" && (c.standby || c.takeOver == upgrader.TakeOverRequire):
		err = errors.New("-standby and -takeover require find the process that serves by -control: want it, too")
	case c.standby && c.takeOver == upgrader.TakeOverNever:
		err = errors.New("-standby with -takeover never: a standby takes over")
	case c.log != "console" && c.log != "json":
		err = fmt.Errorf("-log %s: want console or json", c.log)
	case showVersion:
		c.nothingToServe = true
		_, err := fmt.Fprintln(stdout, "demo", version)
		return c, err
	}
	if err != nil {
		return c, fmt.Errorf("%w; %w", err, errUsage)
	}
	if c.listen == nil && c.tls == "" {
		c.listen = []string{"127.0.0.1:8080"}
	}
	return c, nil
}

func takeOver(word string) (upgrader.TakeOver, error) {
	switch word {
	case "auto":
		return upgrader.TakeOverAuto, nil
	case "never":
		return upgrader.TakeOverNever, nil
	case "require":
		return upgrader.TakeOverRequire, nil
	}
	return 0, errors.New("want auto, never or require")
}

func printHelp(f *flag.FlagSet, w io.Writer) error {
	_, err := io.WriteString(w, usage)
	f.SetOutput(w)
	f.PrintDefaults()
	return err
}

func exitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		return 2
	}
	return 1
}

// newLogger writes a line for each record with one call, so that the lines of
// two generations, which share standard error, do not mix.
func newLogger(format string, w io.Writer) *slog.Logger {
	zerolog.TimeFieldFormat = time.RFC3339Nano
	if format == "console" {
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: "15:04:05.000", NoColor: !isTerminal(w)}
	}
	return slog.New(zerolog.NewSlogHandler(zerolog.New(w)))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}
