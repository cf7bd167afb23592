package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/go-handover/handover/cmd/upgradectl/internal/probe"
	"github.com/go-handover/handover/internal/client"
)

// version is set with -ldflags "-X main.version=…".
var version string

// socketVariable names the control socket where no flag does.
const socketVariable = "UPGRADECTL_SOCKET"

const rootText = `Upgradectl operates a server that replaces itself in place (package upgrader of
github.com/go-handover/handover): it shows the generations of the server,
upgrades it and waits for the verdict, and takes an upgrade back.

It finds the server by its control socket, which the server opens if it is told
so (Options.ControlSocket), or by its pidfile:

    --socket PATH       the control socket
    --pidfile PATH      the pidfile; enough for upgrade and stop
    UPGRADECTL_SOCKET   in the environment, if no flag is given: the control
                        socket

Every flag may be written with one dash: -socket is --socket.

Exit codes:

` + exitCodes

const rootExample = `  upgradectl -socket /run/app/control status
  upgradectl -socket /run/app/control upgrade || journalctl -u app -n 20
  UPGRADECTL_SOCKET=/run/app/control upgradectl rollback
  upgradectl -pidfile /run/app/app.pid upgrade`

// root is the command with all others below it.
type root struct {
	*cobra.Command
	started bool // the command line was understood
}

func newRoot(stdout, stderr io.Writer) *root {
	s := new(server)
	r := &root{Command: &cobra.Command{
		Use:               "upgradectl",
		Short:             "operate a server that upgrades itself",
		Long:              rootText,
		Example:           rootExample,
		Version:           build(),
		SilenceErrors:     true, // run prints them
		SilenceUsage:      true,
		DisableAutoGenTag: true,
	}}
	r.SetOut(stdout)
	r.SetErr(stderr)
	r.PersistentPreRun = func(*cobra.Command, []string) { r.started = true }
	f := r.PersistentFlags()
	f.StringVar(&s.socket, "socket", "", "`path` of the server's control socket")
	f.StringVar(&s.pidfile, "pidfile", "", "`path` of the server's pidfile, for upgrade and stop without a control socket")
	r.AddCommand(
		statusCommand(s),
		upgradeCommand(s),
		promoteCommand(s),
		rollbackCommand(s),
		confirmCommand(s),
		stopCommand(s),
		supervising.command(),
		standingBy.command(),
		probe.Command(),
		manCommand(),
	)
	r.InitDefaultCompletionCmd() // for stdout as it is now
	return r
}

// asked reports that help or the version was asked for.
func (r *root) asked() bool {
	return r.Flags().Changed("help") || r.Flags().Changed("version")
}

// build is the version, and the revision if it is known.
func build() string {
	v := version
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if v == "" {
		v = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v += " " + s.Value
		}
	}
	return v
}

// server is how the command line names one.
type server struct{ socket, pidfile string }

// find completes s, or says what is missing.
func (s *server) find(c *cobra.Command) error {
	f := c.Flags()
	for _, name := range []string{"socket", "pidfile"} {
		if f.Changed(name) && f.Lookup(name).Value.String() == "" {
			return exit(exitUsage, "-%s is empty: want a path", name)
		}
	}
	switch {
	case s.socket != "" && s.pidfile != "":
		return exit(exitUsage, "both -socket %s and -pidfile %s: want one of them", s.socket, s.pidfile)
	case s.socket == "" && s.pidfile == "":
		s.socket = os.Getenv(socketVariable)
	}
	if s.socket == "" && s.pidfile == "" {
		return exit(exitUsage, "no server is named: want -socket PATH, -pidfile PATH or %s", socketVariable)
	}
	return nil
}

// client is for what a control socket alone can answer.
func (s *server) client(c *cobra.Command) (client.Client, error) {
	if err := s.find(c); err != nil {
		return client.Client{}, err
	}
	if s.socket == "" {
		return client.Client{}, exit(exitUsage, "%s asks the control socket: want -socket PATH or %s; -pidfile is for upgrade and stop",
			c.Name(), socketVariable)
	}
	return client.Client{Path: s.socket}, nil
}

// answerLimit is how long an answer may take that takes a server no time.
const answerLimit = 5 * time.Second

// limitFlag adds the flag for how long the command may wait.
func limitFlag(c *cobra.Command, limit *time.Duration, d time.Duration, what string) {
	c.Flags().DurationVar(limit, "timeout", d, "how long to wait for "+what)
}

// within is the context of c with a limit.
func within(c *cobra.Command, limit time.Duration) (context.Context, context.CancelFunc, error) {
	if limit <= 0 {
		return nil, nil, exit(exitUsage, "-timeout %v: want a duration above 0, 30s for example", limit)
	}
	ctx, cancel := context.WithTimeout(c.Context(), limit)
	return ctx, cancel, nil
}

// consoleOf is where c prints.
func consoleOf(c *cobra.Command) *console {
	return newConsole(c.OutOrStdout(), c.ErrOrStderr())
}

// noArguments is cobra.NoArgs with the word for what it is.
func noArguments(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q: %s takes flags only", args[0], c.Name())
	}
	return nil
}
