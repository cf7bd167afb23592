package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/go-handover/handover/internal/client"
	"github.com/go-handover/handover/internal/wire"
	"github.com/go-handover/handover/upgrader"
)

func statusCommand(s *server) *cobra.Command {
	var v view
	var limit time.Duration
	c := &cobra.Command{
		Use:   "status",
		Short: "show the generations of the server, and how the last upgrade ended",
		Long: `Status shows the processes of the server, the newest first: the one that serves,
a new one that is taking over, and old ones that still drain, each with its
version, how many connections it has ("-": it does not count them), and when its
drain is cut short. Then the sockets, the verdict on the last upgrade, and how
all of them have ended since the server was started.

With -watch it shows that whenever something has changed: in place on a terminal,
one block after the other elsewhere. It follows the server from process to
process, and ends with exit code 4 when the server has ended.

With -json it prints the status as the server has sent it, which is the JSON of
upgrader.Status; with -watch, one line for each.`,
		Example: `  upgradectl -socket /run/app/control status
  upgradectl -socket /run/app/control status -watch
  upgradectl -socket /run/app/control status -json | jq .counters`,
		Args: noArguments,
	}
	var watch bool
	c.Flags().BoolVar(&v.json, "json", false, "print JSON, for machines")
	c.Flags().BoolVar(&watch, "watch", false, "follow what happens")
	limitFlag(c, &limit, answerLimit, "the answer, and with -watch for each")
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
		v.out, v.now = c.OutOrStdout(), time.Now
		if watch {
			v.terminal = isTerminal(v.out)
			return v.watch(c.Context(), asked, limit)
		}
		con := consoleOf(c)
		con.await("the server has not answered yet")
		stop := con.progress()
		a, err := asked.Status(ctx)
		stop()
		if err != nil {
			return interrupted(err, "nothing was changed")
		}
		if a.Result != wire.ResultDone {
			return exit(resultCode(a.Result), "%s", notDone(a))
		}
		return v.show(a.Status, a.JSON)
	}
	return c
}

// view is how a status is shown.
type view struct {
	out      io.Writer
	now      func() time.Time
	json     bool
	terminal bool // redraw; watch only
	last     []byte
}

func (v *view) show(s upgrader.Status, raw json.RawMessage) error {
	var b bytes.Buffer
	if v.json {
		if err := json.Indent(&b, raw, "", "  "); err != nil {
			return err
		}
		b.WriteByte('\n')
	} else {
		writeStatus(&b, s, v.now())
	}
	_, err := v.out.Write(b.Bytes())
	return err
}

// errSilent ends a connection on which nothing has come for too long.
var errSilent = errors.New("silent")

// watch shows each status that is not the one before, from whichever process
// serves.
func (v *view) watch(ctx context.Context, c client.Client, limit time.Duration) error {
	for {
		err := v.follow(ctx, c, limit)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // an interruption is how one leaves
		}
		if err != nil && !errors.Is(err, client.ErrNoAnswer) {
			return err
		}
		pause(ctx, lookPause)
	}
}

// follow is watch, of one process.
func (v *view) follow(ctx context.Context, c client.Client, limit time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(limit, func() { cancel(errSilent) })
	defer silent.Stop()
	a, err := c.Watch(ctx, func(s upgrader.Status, raw json.RawMessage) error {
		silent.Reset(limit)
		return v.update(s, raw)
	})
	switch {
	case errors.Is(err, errSilent):
		return exit(exitUnreachable, "control socket %s: no answer for %v: is the process stopped or overloaded?", c.Path, limit)
	case err == nil && a.Result == wire.ResultRefused:
		return exit(exitUnreachable, "%s", notDone(a))
	}
	return err
}

// update shows a status in the place of the one before, or below it.
func (v *view) update(s upgrader.Status, raw json.RawMessage) error {
	changed := !bytes.Equal(raw, v.last)
	first := v.last == nil
	v.last = bytes.Clone(raw)
	var b bytes.Buffer
	switch {
	case v.json && !changed:
		return nil
	case v.json:
		if err := json.Compact(&b, raw); err != nil {
			return err
		}
		b.WriteByte('\n')
	case v.terminal: // also if all that has changed is the time
		b.WriteString("\x1b[H\x1b[2J")
		writeStatus(&b, s, v.now())
	case changed:
		if !first {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "== %s\n", v.now().Format("15:04:05.000"))
		writeStatus(&b, s, v.now())
	}
	_, err := v.out.Write(b.Bytes())
	return err
}

// lookPause is between two processes that are asked.
const lookPause = 10 * time.Millisecond

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
