package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/go-handover/handover/internal/wire"
)

func promoteCommand(s *server) *cobra.Command {
	var swap bool
	var limit time.Duration
	c := &cobra.Command{
		Use:   "promote",
		Short: "make the first standby the server, and wait for the verdict",
		Long: `Promote tells the server to be replaced by the standby that came first
(upgradectl standby), prints each phase as it begins, and waits for the verdict, as
upgrade does. Nothing is started and nothing warms up, so that the switch takes as
long as two messages:

    prepare    nothing is changed yet
    ready      the standby has all that it needs
    commit     it takes over
    probation  it serves, and the old process can take the service back

With -swap the old process starts its own build again, when there is no way back
any more, as a standby of the new one: then going back is another promote. A server
that runs under upgradectl standby needs no -swap: what was replaced is started
again as a standby, from what lies on disk then.

Exit codes:

` + exitCodes + `

The exit code is 2, too, if no standby is ready. If the limit of -timeout runs out,
or upgradectl is interrupted, the upgrade goes on.`,
		Example: `  upgradectl -socket /run/app/control promote
  upgradectl -socket /run/app/control promote -swap
  upgradectl -socket /run/app/control promote -timeout 5m`,
		Args: noArguments,
	}
	c.Flags().BoolVar(&swap, "swap", false, "start the old build again as a standby of the new one")
	limitFlag(c, &limit, upgradeLimit, "the verdict")
	c.RunE = func(c *cobra.Command, _ []string) error {
		asked, err := s.client(c)
		if err != nil {
			return err
		}
		ctx, cancel, err := within(c, limit)
		if err != nil {
			return err
		}
		defer cancel()
		u := &upgrade{client: asked, verb: wire.VerbPromote, console: consoleOf(c)}
		if swap {
			u.verb = wire.VerbSwap
		}
		return u.run(ctx)
	}
	return c
}
