//go:build unix

package upgradertest_test

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/go-handover/handover/upgrader"
	"github.com/go-handover/handover/upgradertest"
)

// The parts of a test of your own.
var (
	t    *testing.T
	m    *testing.M
	main func()
)

// In TestMain, of the package whose main is the server: nothing has to be built.
func ExampleMain() {
	upgradertest.Main(m, main)
}

// Two versions of a server. The second one is put in the place of the first, as
// a deploy does.
func ExampleBuild() {
	control := upgradertest.SocketPath(t)
	s := upgradertest.Start(t, upgradertest.Spec{
		Path:          upgradertest.Build(t, "./cmd/app", "-ldflags=-X main.version=v1"),
		Args:          []string{"-listen", "127.0.0.1:0", "-control", control},
		ControlSocket: control,
	})
	s.Replace(upgradertest.Build(t, "./cmd/app", "-ldflags=-X main.version=v2"))
	if err := s.Upgrade(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Stop()
}

// A new version that cannot serve is to cost nothing.
func ExampleServer_Upgrade() {
	s := upgradertest.Start(t, upgradertest.Spec{PIDFile: "app.pid", Args: []string{"-pidfile", "app.pid"}})
	s.Replace(upgradertest.Build(t, "./cmd/app", "-tags=broken"))
	failed := (*upgradertest.VerdictError)(nil)
	if err := s.Upgrade(t.Context()); !errors.As(err, &failed) || failed.Result != upgrader.Failed {
		t.Errorf("verdict %v, want failed", err)
	}
}

// The new process crashes on probation: the old one takes the service back, and
// nobody is refused.
func ExampleServer_Begin() {
	control := upgradertest.SocketPath(t)
	s := upgradertest.Start(t, upgradertest.Spec{ControlSocket: control, Args: []string{"-control", control}})
	load := upgradertest.LoadHTTP(t, "http://"+s.Addr("http"), upgradertest.HTTP{})
	load.Wait(100)
	attempt, err := s.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	load.Wait(100)
	s.Crash()
	if err := attempt.Wait(); err == nil {
		t.Error("the upgrade has succeeded")
	}
	load.Wait(100)
	if r := load.Stop(); r.Failures["refused"] > 0 {
		t.Error(r)
	}
}

// pinger is a client of a protocol that is not HTTP.
type pinger struct{ addr string }

func (p pinger) Ask(ctx context.Context) error {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", p.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("ping\n")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, len("pong\n")))
	return err
}

func (pinger) Close() {}

func ExampleStartLoad() {
	load := upgradertest.StartLoad(t, 8, func(int) upgradertest.Client { return pinger{"127.0.0.1:7000"} })
	load.Wait(100)
	load.Stop().MustBeClean(t)
}
