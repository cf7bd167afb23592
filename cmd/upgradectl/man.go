package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manDate is when the text was last changed: the pages are the same whenever
// they are made.
var manDate = time.Date(2026, time.November, 25, 0, 0, 0, 0, time.UTC)

func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "write the man pages",
		Long: `Man writes the man pages into a directory, which it makes if it is not there: one
for upgradectl, and one for each command, from the text of -h.`,
		Example: `  upgradectl man /usr/local/share/man/man1
  upgradectl man . && man ./upgradectl.1`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("%d arguments: want one, the directory", len(args))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			header := &doc.GenManHeader{Section: "1", Date: &manDate, Source: "handover", Manual: "Handover Manual"}
			return doc.GenManTreeFromOpts(c.Root(), doc.GenManTreeOptions{Header: header, Path: args[0], CommandSeparator: "-"})
		},
	}
}
