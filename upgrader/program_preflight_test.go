//go:build linux

package upgrader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
)

// preflightOf returns the program's Preflight: what it does is read anew each
// time, from the file of its configuration.
func preflightOf(configPath string, log *slog.Logger) func(ctx context.Context, path string) error {
	return func(ctx context.Context, path string) error {
		c, err := readConfig(configPath)
		if err != nil {
			return err
		}
		name, _ := os.Readlink(path)
		log.Info("preflight", "pid", os.Getpid(), "path", path, "name", name)
		return c.preflight(ctx, path)
	}
}

func (c config) preflight(ctx context.Context, path string) error {
	switch c.Preflight {
	case "good", "":
		return nil
	case "bad":
		return errors.New("the preflight says no")
	case "panic":
		panic("a fault was planted here")
	case "hang":
		select {}
	case "wait":
		<-ctx.Done()
		return ctx.Err()
	case "swap":
		return os.Rename(c.Swap[0], c.Swap[1])
	case "overwrite":
		f, err := os.OpenFile(c.Exe, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte("other bytes"), 0)
		return errors.Join(err, f.Close())
	case "owner":
		return PreflightOwner(ctx, path)
	case "sum":
		return PreflightSHA256(nil)(ctx, path)
	case "program":
		return PreflightProgram(ctx, path)
	case "all":
		return Preflights(PreflightOwner, PreflightProgram, PreflightSHA256(nil))(ctx, path)
	}
	return fmt.Errorf("no preflight is called %q", c.Preflight)
}
