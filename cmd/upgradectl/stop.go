package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/go-handover/handover/internal/client"
	"github.com/go-handover/handover/internal/wire"
	"github.com/go-handover/handover/upgrader"
)

// stopLimit is a drain's default limit and a minute.
const stopLimit = upgrader.DefaultDrainTimeout + time.Minute

func stopCommand(s *server) *cobra.Command {
	var limit time.Duration
	c := &cobra.Command{
		Use:   "stop",
		Short: "stop the server politely, and wait until it is gone",
		Long: `Stop tells the server to stop: it accepts nothing more, and answers what it has
accepted. It waits until every process that was there has ended, those that
drained already too. An upgrade that is under way is stopped with it.

If the limit of -timeout runs out the exit code is 1, and the server goes on to
stop. With -pidfile it works by SIGTERM and the pidfile alone.`,
		Example: `  upgradectl -socket /run/app/control stop
  upgradectl -pidfile /run/app/app.pid stop -timeout 30s`,
		Args: noArguments,
	}
	limitFlag(c, &limit, stopLimit, "the end of the processes")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := s.find(c); err != nil {
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
		var there processes
		defer there.forget()
		if s.socket != "" {
			err = there.stopBySocket(ctx, client.Client{Path: s.socket})
		} else {
			err = there.stopBySignal(s.pidfile)
		}
		if err != nil {
			return interrupted(err, "whether the server stops, upgradectl status says")
		}
		return interrupted(there.await(ctx, con), "the server goes on to stop")
	}
	return c
}

// processes are those whose end is waited for. Each is held on to before it is
// told, so that its pid is not a stranger's meanwhile.
type processes []*process

func (ps *processes) add(pid int) error {
	if pid <= 0 || slices.ContainsFunc(*ps, func(p *process) bool { return p.pid == pid }) {
		return nil
	}
	p, err := openProcess(pid)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	*ps = append(*ps, p)
	return nil
}

func (ps *processes) addAll(s upgrader.Status) error {
	for _, p := range s.Processes {
		if err := ps.add(p.PID); err != nil {
			return err
		}
	}
	return nil
}

func (ps processes) forget() {
	for _, p := range ps {
		p.close()
	}
}

func (ps *processes) stopBySocket(ctx context.Context, c client.Client) error {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	before, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if err := ps.addAll(before.Status); err != nil {
		return err
	}
	a, err := c.Do(ctx, wire.VerbStop, nil)
	switch {
	case errors.Is(err, client.ErrNoAnswer): // it has ended already
		return nil
	case err != nil:
		return err
	case a.Result == wire.ResultRefused:
		return exit(exitUnreachable, "%s", notDone(a))
	}
	return ps.addAll(a.Status) // an upgrade may have begun in between
}

func (ps processes) String() string {
	var pids []string
	for _, p := range ps {
		pids = append(pids, fmt.Sprint(p.pid))
	}
	noun := "processes"
	if len(ps) == 1 {
		noun = "process"
	}
	return noun + " " + strings.Join(pids, ", ")
}

// await waits for the end of all of them.
func (ps processes) await(ctx context.Context, con *console) error {
	all := ps.String()
	for len(ps) > 0 {
		con.await("%s drain", ps)
		if !ps[0].wait(ctx) {
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return exit(exitFailed, "not gone in time (-timeout): %s; stop again to hurry it", ps.left())
			}
			return ctx.Err()
		}
		ps = ps[1:]
	}
	con.line("stopped: %s", all)
	return nil
}

// left are those that have not ended.
func (ps processes) left() processes {
	return slices.DeleteFunc(slices.Clone(ps), (*process).ended)
}
