//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/go-handover/handover/examples/internal/exampletest"
	"github.com/go-handover/handover/internal/proctest"
)

// losses counts attempts that were sent and failed. Such a one may be made
// again without the caller's knowledge, if the server has refused it;
// WithDisableRetry does not switch that off.
type losses struct{ n atomic.Int64 }

type sentKey struct{}

// TagRPC is called for each attempt.
func (*losses) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, sentKey{}, new(atomic.Bool))
}

func (l *losses) HandleRPC(ctx context.Context, event stats.RPCStats) {
	sent := ctx.Value(sentKey{}).(*atomic.Bool)
	switch e := event.(type) {
	case *stats.OutHeader:
		sent.Store(true)
	case *stats.End:
		if e.Error != nil && sent.Load() {
			l.n.Add(1)
		}
	}
}

func (*losses) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (*losses) HandleConn(context.Context, stats.ConnStats)                       {}

// dial connects as a client that never retries.
func dial(addr string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:"+addr, append(options, grpc.WithDisableRetry(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
}

func say(ctx context.Context, cc *grpc.ClientConn) (generation int, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	out := new(number)
	err = cc.Invoke(ctx, sayMethod, wrapperspb.UInt32(0), out)
	return int(out.GetValue()), err
}

// openCount asks for n answers.
func openCount(ctx context.Context, cc *grpc.ClientConn, n uint32) (grpc.ClientStream, error) {
	stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, countMethod)
	if err != nil {
		return nil, err
	}
	return stream, errors.Join(stream.SendMsg(wrapperspb.UInt32(n)), stream.CloseSend())
}

// count reads the n answers of a stream, which all have one sender.
func count(ctx context.Context, cc *grpc.ClientConn, n int) (generation int, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	stream, err := openCount(ctx, cc, uint32(n))
	if err != nil {
		return 0, err
	}
	var senders []uint32
	out := new(number)
	for err = stream.RecvMsg(out); err == nil; err = stream.RecvMsg(out) {
		senders = append(senders, out.GetValue())
	}
	if !errors.Is(err, io.EOF) || len(senders) != n || senders[0] != senders[n-1] {
		return 0, fmt.Errorf("answers %v, want %d: %w", senders, n, err)
	}
	return int(senders[0]), nil
}

func TestUpgradesLoseNothing(t *testing.T) {
	s := exampletest.Start(t, "grpc", "-lame-duck", "0")
	clients := exampletest.NewClients(t)
	var lost losses
	ask := func(ctx context.Context, how func(context.Context, *grpc.ClientConn) (int, error), times int) error {
		cc, err := dial(s.Addr(), grpc.WithStatsHandler(&lost))
		if err != nil {
			return err
		}
		defer cc.Close()
		for ; times != 0 && ctx.Err() == nil; times-- {
			generation, err := how(ctx, cc)
			if err != nil {
				return err
			}
			clients.Answered(generation)
			exampletest.Think(ctx)
		}
		return nil
	}
	clients.Go(8, "unary", func(ctx context.Context) error { return ask(ctx, say, -1) })
	clients.Go(8, "stream", func(ctx context.Context) error {
		return ask(ctx, func(ctx context.Context, cc *grpc.ClientConn) (int, error) { return count(ctx, cc, 10) }, -1)
	})
	clients.Go(2, "new connection", func(ctx context.Context) error {
		for ctx.Err() == nil {
			if err := ask(ctx, say, 1); err != nil {
				return err
			}
		}
		return nil
	})
	clients.Go(2, "watch", func(ctx context.Context) error { return watch(ctx, s.Addr()) })
	s.ReplaceUnder(clients)
	clients.Stop()
	if n := lost.n.Load(); n > 0 {
		t.Errorf("%d attempts were lost", n)
	}
	s.Ends()
}

// watch opens a stream of the health service whenever the server has asked
// for it. In an upgrade no client is told that the service ends.
func watch(ctx context.Context, addr string) error {
	cc, err := dial(addr)
	if err != nil {
		return err
	}
	defer cc.Close()
	for ctx.Err() == nil {
		err := receive(ctx, cc, healthpb.HealthCheckResponse_NOT_SERVING)
		if err == nil {
			return errors.New("NOT_SERVING")
		}
		if ctx.Err() == nil && !drained(err) {
			return err
		}
	}
	return nil
}

func drained(err error) bool {
	return status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "the server drains")
}

// receive watches the service until it has this status.
func receive(ctx context.Context, cc *grpc.ClientConn, want healthpb.HealthCheckResponse_ServingStatus) error {
	stream, err := healthpb.NewHealthClient(cc).Watch(ctx, &healthpb.HealthCheckRequest{})
	for err == nil {
		var r *healthpb.HealthCheckResponse
		if r, err = stream.Recv(); r.GetStatus() == want {
			return nil
		}
	}
	return err
}

func TestStopSaysNotServingAndServesOn(t *testing.T) {
	s := exampletest.Start(t, "grpc", "-lame-duck", "1h")
	cc, err := dial(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	pid := s.PID()
	s.Signal(pid, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := receive(ctx, cc, healthpb.HealthCheckResponse_NOT_SERVING); err != nil {
		t.Fatal(err)
	}
	if _, err := count(ctx, cc, 5); err != nil {
		t.Error(err)
	}
	s.Signal(pid, syscall.SIGTERM) // again: hurry
	s.WaitGone()
}

func TestHurryEndsTheDrain(t *testing.T) {
	s := exampletest.Start(t, "grpc", "-lame-duck", "0")
	cc, err := dial(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := openCount(ctx, cc, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	out := new(number)
	if err := stream.RecvMsg(out); err != nil {
		t.Fatal(err)
	}
	old := s.PID()
	s.Upgrade()
	for generation := 0; generation != 2; { // once it has been told to go elsewhere
		if generation, err = say(ctx, cc); err != nil {
			t.Fatal(err)
		}
	}
	s.Signal(old, syscall.SIGTERM)
	s.Wait(proctest.Text("drain cut short"))
	for err == nil {
		err = stream.RecvMsg(out)
	}
	if status.Code(err) != codes.Unavailable || out.GetValue() != 1 {
		t.Errorf("the stream of generation %d ends with %v", out.GetValue(), err)
	}
	if code := s.ExitCode(); code != 0 {
		t.Errorf("the old process: exit code %d, want 0", code)
	}
}
