package main

import (
	"flag"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/go-handover/handover/internal/supervise"
)

const superviseText = `Supervise runs COMMAND, a server that replaces itself, and stays for as long as
the server does, whichever process that is. It is for everything that watches
the one process it started: runit, s6, daemontools, supervisord, monit, a
container, PID 1.

It tells the server of itself by NOTIFY_SOCKET and UPGRADER_SUPERVISOR_PID, and
follows MAINPID= from there to the main process of now. To that it passes on
the signals it gets. After TERM, INT and QUIT nothing is restarted. A signal to
the whole process group, as a terminal sends it for Ctrl-C, reaches the server
itself, too: twice, and so it stops without waiting for long requests.

When the last main process has ended, what is left of it, older generations
that drain, may go on for -kill-after. Then it is told to end by SIGTERM, and
after as long again, 10s at most, by SIGKILL. Make it as long as a drain.

The server can store its sockets here (FDSTORE=1). After a crash -restart starts
COMMAND again with them, so that no connection is refused, 100ms later, and each
time twice as much up to 30s; a run of 10s begins anew: on-failure after an exit
code that is not 0 or a signal, unless-stopped also after an exit code of 0 that
does not follow STOPPING=1, which the server says when it is told to stop. What
this process was given as LISTEN_FDS is stored from the start.

READY=1 and what else the main process says of its state is passed on to the
NOTIFY_SOCKET of this process, if it has one; -ready-fd is s6's notification-fd.

The exit code is that of the last main process, or 128 and the number of the
signal that ended it; 127 if COMMAND is not found, 126 if it cannot be run, 5
for wrong usage.`

const superviseExample = `  exec upgradectl supervise -- /usr/local/bin/app -listen :8080
  exec upgradectl supervise -restart on-failure -ready-fd 3 -- app
  kill -USR1 $SUPERVISOR   # upgrades app`

// keeping is one of the commands that stay for as long as a server does.
type keeping struct {
	name                 string
	short, text, example string
	config               supervise.Config // without its flags
}

var supervising = keeping{
	name:  "supervise",
	short: "run a server under what watches one process",
	text:  superviseText, example: superviseExample,
}

// keepings are all of them.
var keepings = []keeping{supervising, standingBy}

// flags returns the flags, which set c. They are of the standard library, whose
// package takes them with one dash or two and leaves what follows COMMAND alone.
func (k keeping) flags(c *supervise.Config) *flag.FlagSet {
	*c = k.config
	c.Name = "upgradectl " + k.name
	f := flag.NewFlagSet(k.name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Var(&c.Restart, "restart", "`when` to start COMMAND again after a main process has ended by itself: no, on-failure, unless-stopped or always")
	f.IntVar(&c.ReadyFD, "ready-fd", 0, "write a newline to descriptor `N` when the server is ready, and close it")
	f.DurationVar(&c.KillAfter, "kill-after", supervise.DefaultKillAfter, "how long what is left of a server that has ended may go on")
	return f
}

// command is for help, and for telling what is wrong: keepAlone runs what is
// right.
func (k keeping) command() *cobra.Command {
	var config supervise.Config
	c := &cobra.Command{
		Use:     k.name + " [flags] -- COMMAND [ARG…]",
		Short:   k.short,
		Long:    k.text,
		Example: k.example,
		Args: func(_ *cobra.Command, args []string) error {
			config.Command = args
			return k.check(config)
		},
		RunE: func(*cobra.Command, []string) error {
			return exit(exitUsage, "%[1]s takes no flags before its name: want upgradectl %[1]s [flags] -- COMMAND [ARG…]", k.name)
		},
	}
	c.Flags().AddGoFlagSet(k.flags(&config))
	c.Flags().SetInterspersed(false)
	return c
}

func (k keeping) check(c supervise.Config) error {
	switch {
	case len(c.Command) == 0:
		return fmt.Errorf("no command to run: want %s [flags] -- COMMAND [ARG…]", k.name)
	case c.KillAfter <= 0:
		return fmt.Errorf("-kill-after %v: want a duration above 0, 10s for example", c.KillAfter)
	case c.ReadyFD != 0 && c.ReadyFD < 3:
		return fmt.Errorf("-ready-fd %d: want 3 or more", c.ReadyFD)
	}
	return nil
}

// parse returns what a command line asks for.
func (k keeping) parse(args []string) (c supervise.Config, err error) {
	f := k.flags(&c)
	if err := f.Parse(args); err != nil {
		return c, err
	}
	c.Command = f.Args()
	return c, k.check(c)
}

// keepAlone runs the command without the rest of this program: it stays in
// memory for as long as the server runs. done is false where the
// command line asks for help or is wrong: that is for the rest to tell.
func keepAlone(args []string, stderr io.Writer) (code int, done bool) {
	i := slices.IndexFunc(keepings, func(k keeping) bool { return len(args) > 0 && k.name == args[0] })
	if i < 0 {
		return 0, false
	}
	c, err := keepings[i].parse(args[1:])
	if err != nil {
		return 0, false
	}
	c.Log = stderr
	code, err = supervise.Run(c)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %s\n", c.Name, printable(err.Error()))
	}
	return code, true
}
