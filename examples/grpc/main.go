// Grpc is a gRPC server. No call is lost to an upgrade, and clients of the health
// service do not hear of it.
//
// How it drains. GracefulStop sends GOAWAY in two steps, so that no call that a
// client has already sent is refused, and waits for those under way; clients
// connect again, to the new process. A stream that never ends would make it wait for
// ever: endWith ends those, with codes.Unavailable. Only in a real stop does the
// health service say NOT_SERVING, and for -lame-duck the server then serves on, also
// new connections, so that load balancers can turn away.
//
// What is limited. Before its GOAWAY, GracefulStop waits for connections that
// have not said anything yet, and so does Stop: grpc.ConnectionTimeout, 2 min if
// it is not set, is their limit. Connections are not handed over, so each client
// connects again once in an upgrade, and all at the same time. In a stop, a connection
// that is accepted at the very moment of GracefulStop is closed without a word; in an
// upgrade nothing has been accepted since the beginning of the probation. The drain
// ends at up.Hurry, after Options.DrainTimeout or at a second SIGTERM: then Stop cuts
// off the calls that are left.
package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/go-handover/handover/upgrader"
)

var (
	listen    = flag.String("listen", "127.0.0.1:50051", "`address` to serve on")
	pidfile   = flag.String("pidfile", "", "`file` that names the process that serves")
	probation = flag.Duration("probation", upgrader.DefaultProbation, "how long the old process can take the service back")
	lameDuck  = flag.Duration("lame-duck", 5*time.Second, "in a stop, how long to serve on while the health service says NOT_SERVING")
)

func main() {
	flag.Parse()
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if err := run(log); !errors.Is(err, upgrader.ErrUpgraded) && !errors.Is(err, upgrader.ErrStopped) {
		log.Error("failed", "err", err)
		os.Exit(1)
	}
}

func run(log *slog.Logger) error {
	ctx := context.Background()
	up, err := upgrader.New(upgrader.Options{PIDFile: *pidfile, Probation: *probation, Logger: log})
	if err != nil {
		return err
	}
	if err := up.HandleSignals(ctx, upgrader.Signals{}); err != nil {
		return err
	}
	ln, err := up.Listen(ctx, "grpc", "tcp", *listen)
	if err != nil {
		return err
	}
	log = log.With("pid", os.Getpid(), "generation", up.Generation())
	log.Info("listening", "addr", ln.Addr().String())

	draining, drain := context.WithCancel(ctx)
	defer drain()
	srv := grpc.NewServer(
		grpc.ConnectionTimeout(5*time.Second),
		grpc.StreamInterceptor(endWith(draining)),
	)
	checks := health.NewServer()
	healthpb.RegisterHealthServer(srv, checks)
	srv.RegisterService(echo{uint32(up.Generation())}.description(), nil)

	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }() // Accept blocks until this process is committed
	if err := up.Ready(); err != nil {
		return err
	}
	select {
	case <-up.Done():
	case err := <-served: // nobody has asked for that
		up.Fail(err)
		return err
	}

	if errors.Is(up.Err(), upgrader.ErrStopped) {
		checks.Shutdown() // NOT_SERVING; in an upgrade the service goes on
		select {
		case <-time.After(*lameDuck):
		case <-up.Hurry():
		}
	}
	ended := make(chan struct{})
	go func() { srv.GracefulStop(); close(ended) }()
	drain()
	select {
	case <-ended:
		log.Info("drained")
	case <-up.Hurry():
		srv.Stop()
		log.Warn("drain cut short")
	}
	up.Wait() // an older generation may still need this one
	return up.Err()
}

// endWith ends the streams that would not end by themselves when the drain
// begins. Those of the health service are such; a program adds its own.
func endWith(draining context.Context) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		if info.FullMethod != healthpb.Health_Watch_FullMethodName {
			return handle(srv, stream)
		}
		ctx, cancel := context.WithCancel(stream.Context())
		defer cancel()
		defer context.AfterFunc(draining, cancel)()
		err := handle(srv, streamUntil{stream, ctx})
		if draining.Err() != nil {
			return status.Error(codes.Unavailable, "the server drains: open the stream again")
		}
		return err
	}
}

// streamUntil is a stream with another context.
type streamUntil struct {
	grpc.ServerStream
	ctx context.Context
}

func (s streamUntil) Context() context.Context { return s.ctx }
