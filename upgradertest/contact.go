package upgradertest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// contact is how a test learns what the server does.
type contact interface {
	// serving returns the pid of the process that is the server, and waits until
	// there is one.
	serving(ctx context.Context) (pid int, err error)

	// upgrade returns the verdict. It calls probation with the pid of the
	// successor when that serves, if it is told.
	upgrade(ctx context.Context, probation func(pid int)) error

	// stop asks the server to stop.
	stop(ctx context.Context) error
}

func (s *Server) contactOf(spec Spec) contact {
	s.tb.Helper()
	switch {
	case spec.ControlSocket != "":
		return &control{server: s, path: spec.from(spec.ControlSocket)}
	case spec.PIDFile != "":
		return &signals{server: s, path: spec.from(spec.PIDFile)}
	}
	s.tb.Fatal("upgradertest: neither ControlSocket nor PIDFile is set in Spec: " +
		"without one a test cannot know when the server serves; SocketPath makes a path for the first")
	return nil
}

// from returns a path of the server as the test sees it.
func (s Spec) from(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(s.Dir, path)
}

// errOver is why a process is not waited for any longer.
var errOver = errors.New("every process of the server has ended")

// errEnded is why an upgrade has no verdict.
var errEnded = errors.New("the process that was asked has ended, and no other one serves")

// look is the time between two looks at what tells nobody of its changes.
const look = 10 * time.Millisecond

// pause lets the time between two looks pass. It reports whether ctx is not done.
func pause(ctx context.Context) bool {
	select {
	case <-time.After(look):
		return true
	case <-ctx.Done():
		return false
	}
}

// because is the error of a wait that ctx has ended, with the latest that was
// found.
func because(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if errors.Is(err, cause) {
		return err
	}
	return fmt.Errorf("%w: %w", cause, err)
}
