package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/go-handover/handover/internal/client"
	"github.com/go-handover/handover/internal/wire"
	"github.com/go-handover/handover/upgrader"
)

func rollbackCommand(s *server) *cobra.Command {
	c := &cobra.Command{
		Use:   "rollback",
		Short: "take an upgrade back, as long as it is on probation, or give it up before",
		Long: `Rollback ends the probation of an upgrade: the old process, which still has its
sockets open, serves again, and the new one drains. Whoever waits for the upgrade
is told that it was rolled back (exit code 3). If the new process is not ready
yet, the upgrade is given up: the old process serves on, the new one is ended, and
whoever waits is told that the upgrade failed (exit code 1). Without an upgrade
the exit code is 2, and nothing happens.`,
		Example: `  upgradectl -socket /run/app/control rollback`,
	}
	return endsProbation(c, s, wire.VerbRollback, upgrader.RolledBack)
}

func confirmCommand(s *server) *cobra.Command {
	c := &cobra.Command{
		Use:   "confirm",
		Short: "end the probation of an upgrade now: there is no way back",
		Long: `Confirm ends the probation of an upgrade before its time: the old process drains
and the new one is the server for good. Without an upgrade on probation the exit
code is 2, and nothing happens.`,
		Example: `  upgradectl -socket /run/app/control confirm`,
	}
	return endsProbation(c, s, wire.VerbConfirm, upgrader.Upgraded)
}

// endsProbation makes c send verb, after which wanted is the verdict.
func endsProbation(c *cobra.Command, s *server, verb string, wanted upgrader.Result) *cobra.Command {
	var limit time.Duration
	c.Args = noArguments
	limitFlag(c, &limit, answerLimit, "the answer")
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
		con := consoleOf(c)
		con.await("the server has not answered yet")
		defer con.progress()()
		before, err := asked.Status(ctx)
		if err != nil {
			return interrupted(err, "nothing was asked for")
		}
		a, err := asked.Do(ctx, verb, nil)
		if errors.Is(err, client.ErrNoAnswer) {
			a, err = askAgain(ctx, asked, before.Status.Last)
			if err == nil && a.Status.Last.Result == wanted {
				a.Result = wire.ResultDone
			}
		}
		if err != nil {
			return interrupted(err, "whether it was done, upgradectl status says")
		}
		if a.Result != wire.ResultDone {
			return exit(resultCode(a.Result), "%s", notDone(a))
		}
		done := map[string]string{wire.VerbRollback: "rolled back", wire.VerbConfirm: "confirmed"}[verb]
		if self(before.Status).State == "upgrading" && a.Status.Counters.Rollbacks == before.Status.Counters.Rollbacks {
			done = "given up" // the new process was not ready yet
		}
		con.line("%s", done)
		return nil
	}
	return c
}
