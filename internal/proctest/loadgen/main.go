// Loadgen puts the clients of package load on a server, and prints what they
// have lost. Its exit code is 0 if that is nothing, 1 if it is something, and 2
// if it could not begin.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/proctest/load"
)

const usage = `Usage: loadgen -target TARGET [flags]

Loadgen puts clients on a server that answers as cmd/demo does. They never
retry. It ends at one of its bounds, or on SIGINT or SIGTERM, and prints a table.

With -commands it reads standard input, line by line, and ends with it:
  mark       something happens to the server now; the table gives the latency
             around the marks apart from the rest
  crashed    a process of the server has died since the last mark; what was cut
             off on its own connections is counted apart
  say TEXT   show TEXT in the line of progress
and says on standard error which generation of the server answers for the first
time.

Kinds of client:
`

// errLost is the result of a load that could be put on the server.
var errLost = errors.New("requests were lost")

func main() {
	err := run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "loadgen:", err)
	}
	switch {
	case errors.Is(err, errLost):
		os.Exit(1)
	case err != nil:
		os.Exit(2)
	}
}

func run(args []string, stdin io.Reader, stdout, stderr *os.File) error {
	var cfg load.Config
	f := flag.NewFlagSet("loadgen", flag.ContinueOnError)
	f.SetOutput(stdout)
	f.Usage = func() {
		fmt.Fprint(stdout, usage)
		for _, k := range load.Kinds {
			fmt.Fprintf(stdout, "  %-11s  %s\n", k, k.Does())
		}
		fmt.Fprint(stdout, "\nFlags:\n")
		f.PrintDefaults()
	}
	f.StringVar(&cfg.Target, "target", "", "http://HOST:PORT, https://HOST:PORT or unix:PATH")
	f.DurationVar(&cfg.Duration, "duration", time.Minute, "no request starts later")
	f.IntVar(&cfg.Requests, "requests", 0, "how many in all (default any number)")
	f.DurationVar(&cfg.Timeout, "timeout", 10*time.Second, "limit of a request")
	f.DurationVar(&cfg.Think, "think", 20*time.Millisecond, "longest pause of a client between two requests")
	f.DurationVar(&cfg.Hold, "hold", 200*time.Millisecond, "how long the requests take that are meant to")
	f.Func("clients", "how many of each `kind`: get=16,post=16 (default 16 get and post, 4 new, late, slow and stream)", func(s string) (err error) {
		cfg.Clients, err = parseClients(s)
		return err
	})
	commands := f.Bool("commands", false, "read commands from standard input")
	asJSON := f.Bool("json", false, "print the report of package load as JSON and not as a table")
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return err
	case f.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", f.Arg(0))
	}

	ctx, release := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer release()
	if *commands {
		cfg.First = func(p load.Process) { fmt.Fprintf(stderr, "generation %d answers\n", p.Generation) }
	}
	l, err := load.Start(context.Background(), cfg)
	if err != nil {
		return err
	}
	var note atomic.Value
	ended := make(chan struct{})
	if *commands {
		go func() {
			defer close(ended)
			obey(stdin, l, &note)
		}()
	}
	watch(ctx, l, ended, &note, stderr)
	report := l.Stop()
	if err := show(stdout, report, *asJSON); err != nil {
		return err
	}
	if report.Total.Failed > 0 {
		return fmt.Errorf("%d %w", report.Total.Failed, errLost)
	}
	return nil
}

func show(w io.Writer, report load.Report, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(report)
	}
	_, err := fmt.Fprint(w, report)
	return err
}

func parseClients(s string) (map[load.Kind]int, error) {
	clients := make(map[load.Kind]int)
	for part := range strings.SplitSeq(s, ",") {
		kind, number, _ := strings.Cut(part, "=")
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%q: want KIND=NUMBER", part)
		}
		clients[load.Kind(kind)] = n
	}
	for kind := range clients {
		if !kind.Known() {
			return nil, fmt.Errorf("kind %q: want one of %v", kind, load.Kinds)
		}
	}
	return clients, nil
}

// obey carries out commands until there are no more.
func obey(r io.Reader, l *load.Load, note *atomic.Value) {
	mark := time.Now()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		command, text, _ := strings.Cut(lines.Text(), " ")
		switch command {
		case "mark":
			mark = time.Now()
			l.Mark(mark)
		case "crashed":
			l.Crash(mark, time.Now())
		case "say":
			note.Store(text)
		}
	}
}

// watch shows how it goes, and returns when it is time to report.
func watch(ctx context.Context, l *load.Load, ended <-chan struct{}, note *atomic.Value, w *os.File) {
	format, every := "%s\n", 5*time.Second
	if fi, err := w.Stat(); err == nil && fi.Mode()&os.ModeCharDevice != 0 {
		format, every = "\r%s\033[K", 200*time.Millisecond
		defer fmt.Fprint(w, "\r\033[K")
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	begun := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ended:
			return
		case <-l.Done():
			return
		case <-tick.C:
			requests, failed := l.Counts()
			text, _ := note.Load().(string)
			fmt.Fprintf(w, format, fmt.Sprintf("%3.0f s  %d requests  %d failed  %s", time.Since(begun).Seconds(), requests, failed, text))
		}
	}
}
