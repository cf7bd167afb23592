package main

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// process is held by a pidfd: it stays the same one whatever becomes of its pid.
type process struct {
	pid int
	fd  int
}

// openProcess returns os.ErrProcessDone if there is none.
func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return &process{pid, fd}, nil
}

func (p *process) close() { _ = unix.Close(p.fd) }

// pollFor is how long wait may notice the end of ctx too late.
const pollFor = 50 * time.Millisecond

// wait reports whether the process has ended, or ctx has before it.
func (p *process) wait(ctx context.Context) bool {
	for !p.endedWithin(pollFor) {
		if ctx.Err() != nil {
			return false
		}
	}
	return true
}

func (p *process) ended() bool { return p.endedWithin(0) }

// endedWithin waits for at most d. A pidfd is readable once the process has
// ended, reaped or not.
func (p *process) endedWithin(d time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(d.Milliseconds()))
	return err == nil && n > 0
}
