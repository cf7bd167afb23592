package main

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// An echo stands for your service, which protoc would describe. It answers
// with its number, which is that of the generation.
type echo struct{ generation uint32 }

type number = wrapperspb.UInt32Value

// say answers at once.
func (e echo) say(context.Context, *number) (*number, error) {
	return wrapperspb.UInt32(e.generation), nil
}

// count answers as often as it is asked to, every 10 ms.
func (e echo) count(n *number, stream grpc.ServerStream) error {
	for range n.GetValue() {
		if err := stream.SendMsg(wrapperspb.UInt32(e.generation)); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// The methods as a client names them.
const (
	sayMethod   = "/example.Echo/Say"
	countMethod = "/example.Echo/Count"
)

// description is what protoc would generate.
func (e echo) description() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: "example.Echo",
		Methods: []grpc.MethodDesc{{
			MethodName: "Say",
			Handler: func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
				in := new(number)
				if err := decode(in); err != nil {
					return nil, err
				}
				say := func(ctx context.Context, _ any) (any, error) { return e.say(ctx, in) }
				if intercept == nil {
					return say(ctx, in)
				}
				return intercept(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: sayMethod}, say)
			},
		}},
		Streams: []grpc.StreamDesc{{
			StreamName:    "Count",
			ServerStreams: true,
			Handler: func(_ any, stream grpc.ServerStream) error {
				in := new(number)
				if err := stream.RecvMsg(in); err != nil {
					return err
				}
				return e.count(in, stream)
			},
		}},
	}
}
