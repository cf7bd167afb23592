// Package probe is the command that puts clients on a server, which never
// retry, and tells what they lose while it is upgraded.
package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

const about = `Probe puts clients on a server and counts what they lose. They never retry, so
that they see what a retry hides: run it while you deploy.

Each URL can have a method of its own before it. An address is http://…,
https://… or unix:PATH; with -unix PATH, the URL says what is asked there.

A complete response is an answer, whatever its status; -expect CODE makes every
other status a loss. Redirects are not followed. What counts as lost is
  refused     nobody listens
  reset       the connection was thrown away
  eof         it was closed before the first byte of the response
  truncated   it was closed within the response
  timeout     there was no complete response within -timeout
  tls         the handshake failed
  rejected    HTTP/2: the server took the stream and then would not process it
  status      the answer is not the one of -expect
  other       it is not HTTP, for example
A server may close a connection that is kept between two requests: its client
connects again, which is counted apart, as reconnects.

If the server tells its pid, in the header X-Handover-Pid or by a body that
begins with pid=N, then a new pid is an upgrade. With -socket its control socket
tells. With -commands, lines of standard input do:
  mark [TEXT]    something happens now
  crashed        a process has died since the last mark: what it had accepted
                 and was cut off is not lost but cut
  say [TEXT]     show TEXT in the live line
and their end ends the probe. Else -duration does, or an interrupt: the requests
in flight finish, and the table is printed. A second interrupt abandons them.

Over HTTP/2 each client that keeps its connection has 4 requests at once on it.
The client is our own, frame by frame: Go's repeats by itself, and this cannot
be switched off, what a server refuses.

The exit code is 0 if nothing was lost, 1 if something was, 4 if the server or
its control socket could not be reached at the start, 5 for wrong usage.`

const examples = `  # while you deploy, until you press Ctrl-C
  upgradectl probe -duration 0 http://127.0.0.1:8080/

  # writes, 500 a second, and a picture of it
  upgradectl probe -rate 500 -body {} -plot deploy.svg POST http://127.0.0.1:8080/items

  # HTTP/2 over TLS with a certificate that nobody knows; only 200 will do
  upgradectl probe -h2 -insecure -expect 200 https://127.0.0.1:8443/

  # a unix socket; the upgrades as the server itself tells them
  upgradectl probe -unix /run/app/http.sock -socket /run/app/control.sock http://app/healthz`

// Options are the command line.
type options struct {
	fresh, keep, conns int
	method, body       string
	header             []string
	rate               float64
	duration           time.Duration
	timeout, think     time.Duration
	h2, insecure       bool
	unix, socket       string
	expect             int
	commands, json     bool
	plot               string
}

// Exit codes, beside 0.
const (
	codeLost        = 1
	codeUnreachable = 4
	codeUsage       = 5
)

// exitError has the exit code of the process.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// ExitCode is what the process should exit with.
func (e *exitError) ExitCode() int { return e.code }

func usageError(format string, args ...any) error {
	return &exitError{codeUsage, fmt.Errorf(format, args...)}
}

// Command returns the command. Where its error has a method ExitCode, that is
// what the process should exit with.
func Command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:     "probe [METHOD] URL…",
		Short:   "put clients on a server that never retry, and tell what they lose",
		Long:    about,
		Example: examples,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError("no URL")
			}
			return nil
		},
		RunE:          o.run,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{codeUsage, err} })
	o.define(cmd)
	return cmd
}

func (o *options) define(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	f.IntVar(&o.fresh, "new", 2, "clients of each URL that open a connection for each request")
	f.IntVar(&o.keep, "keep", 6, "clients of each URL that keep their connection")
	f.IntVar(&o.conns, "conns", 0, "clients of each URL in all, one in four of them new (instead of -new and -keep)")
	f.StringVar(&o.method, "method", http.MethodGet, "of the URLs that have none of their own")
	f.StringVar(&o.body, "body", "", "of every request but GET and HEAD; @FILE reads it from a file")
	f.StringArrayVar(&o.header, "header", nil, "`'NAME: VALUE'` to send; can be repeated")
	f.Float64Var(&o.rate, "rate", 200, "requests a second of all clients together; 0: as many as they can")
	f.DurationVar(&o.duration, "duration", 30*time.Second, "no request starts later; 0: until it is interrupted")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "limit of each of: connecting, and a request")
	f.DurationVar(&o.think, "think", 0, "least pause of a client between two requests")
	f.BoolVar(&o.h2, "h2", false, "HTTP/2; to http:// in the clear, by prior knowledge")
	f.BoolVar(&o.insecure, "insecure", false, "take any certificate")
	f.StringVar(&o.unix, "unix", "", "`path` of the socket to connect to, whatever the URLs say")
	f.IntVar(&o.expect, "expect", 0, "the `code` that answers must have; 0: any is an answer")
	f.StringVar(&o.socket, "socket", "", "`path` of the server's control socket, which tells of upgrades")
	f.BoolVar(&o.commands, "commands", false, "take marks from standard input")
	f.BoolVar(&o.json, "json", false, "print the table as JSON")
	f.StringVar(&o.plot, "plot", "", "`FILE.svg` to draw the latency over time in")
}

// complete checks what the flags say, and works out what they leave open.
func (o *options) complete(cmd *cobra.Command) error {
	changed := cmd.Flags().Changed
	switch {
	case changed("conns") && (changed("new") || changed("keep")):
		return usageError("-conns says how many clients there are: it excludes -new and -keep")
	case changed("conns") && o.conns < 1:
		return usageError("-conns %d: want 1 or more", o.conns)
	case o.fresh < 0 || o.keep < 0 || o.fresh+o.keep == 0:
		return usageError("-new %d -keep %d: there are no clients", o.fresh, o.keep)
	case !(o.rate >= 0 && o.rate <= 1e6):
		return usageError("-rate %v: want 0 to 1000000 a second", o.rate)
	case o.duration < 0:
		return usageError("-duration %v: want 0 or more", o.duration)
	case o.timeout <= 0:
		return usageError("-timeout %v: want more than 0", o.timeout)
	case o.think < 0:
		return usageError("-think %v: want 0 or more", o.think)
	case o.expect != 0 && (o.expect < 200 || o.expect > 599):
		return usageError("-expect %d: want the code of a final response, 200 to 599", o.expect)
	case o.plot != "" && !strings.HasSuffix(o.plot, ".svg"):
		return usageError("-plot %s: want a name that ends in .svg", o.plot)
	}
	if changed("conns") {
		o.fresh = o.conns / 4
		o.keep = o.conns - o.fresh
	}
	if file, ok := strings.CutPrefix(o.body, "@"); ok {
		body, err := os.ReadFile(file)
		if err != nil {
			return usageError("-body: %w", err)
		}
		o.body = string(body)
	}
	return o.plotCanBeWritten()
}

// plotCanBeWritten finds out before the load and not after it.
func (o *options) plotCanBeWritten() error {
	if o.plot == "" {
		return nil
	}
	f, err := os.OpenFile(o.plot, os.O_WRONLY|os.O_CREATE, 0o666)
	if err != nil {
		return usageError("-plot: %w", err)
	}
	return f.Close()
}

func (o *options) run(cmd *cobra.Command, args []string) error {
	if err := o.complete(cmd); err != nil {
		return err
	}
	targets, err := o.targets(args)
	if err != nil {
		return err
	}
	ctx, abandoned, release := interrupts(cmd.Context())
	defer release()
	if err := reach(ctx, targets); err != nil {
		return &exitError{codeUnreachable, err}
	}
	p := newProbe(o, targets)
	unfollow, err := o.follow(ctx, p)
	if err != nil {
		return &exitError{codeUnreachable, err}
	}
	if o.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.duration)
		defer cancel()
	}
	if o.commands {
		ctx = p.obey(ctx, cmd.InOrStdin())
	}
	quiet := p.live(cmd.ErrOrStderr())
	p.run(ctx, abandoned)
	quiet()
	if err := unfollow(); err != nil {
		fmt.Fprintln(cmd.ErrOrStderr(), "marks may be missing:", err)
	}
	r := p.report()
	if err := o.print(cmd.OutOrStdout(), r, p); err != nil {
		return err
	}
	if n := r.Total.Lost; n > 0 {
		return &exitError{codeLost, fmt.Errorf("%s lost", count(n, "request"))}
	}
	return nil
}

// interrupts returns what is done at the first interrupt, and what is done at
// the second: whoever is in a hurry need not wait for the requests in flight.
func interrupts(parent context.Context) (first, second context.Context, release func()) {
	first, stop := context.WithCancel(parent)
	second, abandon := context.WithCancel(context.WithoutCancel(parent))
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for _, end := range []func(){stop, abandon} {
			select {
			case <-signals:
				end()
			case <-second.Done():
				return
			}
		}
	}()
	return first, second, func() {
		signal.Stop(signals)
		stop()
		abandon()
	}
}

// print writes what was found, in each form that is asked for.
func (o *options) print(w io.Writer, r report, p *probe) error {
	var text string
	if o.json {
		text = r.json()
	} else {
		text = r.String()
	}
	_, err := io.WriteString(w, text)
	if o.plot != "" {
		if plotErr := p.plot(o.plot); plotErr != nil {
			err = errors.Join(err, fmt.Errorf("-plot: %w", plotErr))
		}
	}
	return err
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what + " was"
	}
	return strconv.Itoa(n) + " " + what + "s were"
}
