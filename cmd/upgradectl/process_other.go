//go:build !linux

package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// process is known by its pid alone.
type process struct{ pid int }

// openProcess returns os.ErrProcessDone if there is none.
func openProcess(pid int) (*process, error) {
	p := &process{pid}
	if p.ended() {
		return nil, os.ErrProcessDone
	}
	return p, nil
}

func (p *process) close() {}

const pollFor = 50 * time.Millisecond

// wait reports whether the process has ended, or ctx has before it.
func (p *process) wait(ctx context.Context) bool {
	for !p.ended() {
		if ctx.Err() != nil {
			return false
		}
		pause(ctx, pollFor)
	}
	return true
}

func (p *process) ended() bool {
	found, err := os.FindProcess(p.pid)
	if err != nil {
		return true
	}
	defer func() { _ = found.Release() }()
	err = found.Signal(syscall.Signal(0))
	return err != nil && !errors.Is(err, fs.ErrPermission)
}
