// Websocket is a server that acknowledges messages, with coder/websocket and
// httpgrace.
//
// How it drains. A WebSocket has a state in the process, so it is not handed
// over. When the drain begins, in an upgrade and in a stop alike, the handler
// finishes the message that it works on, sends its acknowledgement, and then the
// close frame 1001 (going away). A client connects again when it receives that,
// and sends again what was not acknowledged: that was not processed. So nothing
// is lost, and nothing is done twice. Requests of plain HTTP are drained by
// httpgrace as ever.
//
// What is limited. A client has 5 s to answer the close frame, which is
// coder/websocket's own limit; then its connection is closed. Messages that a client
// has sent meanwhile are thrown away. A handler that works longer than
// Server.DrainTimeout on one message is cut off, and so is everything at a
// second SIGTERM. All clients connect again at the same time: let them wait for
// a random moment if there are many.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/go-handover/handover/httpgrace"
	"github.com/go-handover/handover/upgrader"
)

var (
	listen    = flag.String("listen", "127.0.0.1:8080", "`address` to serve on")
	pidfile   = flag.String("pidfile", "", "`file` that names the process that serves")
	probation = flag.Duration("probation", upgrader.DefaultProbation, "how long the old process can take the service back")
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
	ln, err := up.Listen(ctx, "http", "tcp", *listen)
	if err != nil {
		return err
	}
	log = log.With("pid", os.Getpid(), "generation", up.Generation())
	log.Info("listening", "addr", ln.Addr().String())

	h := &handler{generation: up.Generation()}
	srv := &httpgrace.Server{
		Server: &http.Server{
			Handler:           h,
			ReadHeaderTimeout: 10 * time.Second,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
		Hurry: up.Hurry(),
	}
	served := make(chan error, 1)
	go func() { served <- srv.ServeUntil(up.Done(), ln) }() // Accept blocks until this process is committed
	if err := up.Ready(); err != nil {
		return err
	}
	err = <-served
	if up.Err() == nil { // nobody has asked for that
		up.Fail(err)
		return err
	}
	if err != nil {
		log.Warn("drain cut short", "err", err)
	}
	log.Info("drained", "acknowledged", h.acknowledged.Load())
	up.Wait() // an older generation may still need this one
	return up.Err()
}

type handler struct {
	generation   int
	acknowledged atomic.Int64
}

// ServeHTTP processes one message after the other, and looks between two of
// them whether it is time to go.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ws, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // Accept has answered the request
	}
	defer func() { _ = ws.CloseNow() }() // it may be closed
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	messages := make(chan []byte)
	go read(ctx, ws, messages)
	for {
		select {
		case m, ok := <-messages:
			if !ok || h.process(ctx, ws, m) != nil {
				return
			}
		case <-httpgrace.Draining(ctx):
			_ = ws.Close(websocket.StatusGoingAway, "connect again") // ends read, too
			return
		}
	}
}

// read has a goroutine of its own, because the end of a Read's context would
// close the connection. It ends with the handler.
func read(ctx context.Context, ws *websocket.Conn, messages chan<- []byte) {
	defer close(messages)
	for {
		_, m, err := ws.Read(ctx)
		if err != nil {
			return
		}
		select {
		case messages <- m:
		case <-ctx.Done(): // not acknowledged, so the client sends it again
			return
		}
	}
}

// process is what your program does. It ends with the acknowledgement.
func (h *handler) process(ctx context.Context, ws *websocket.Conn, m []byte) error {
	err := ws.Write(ctx, websocket.MessageText, fmt.Appendf(nil, "%d %s", h.generation, m))
	if err == nil {
		h.acknowledged.Add(1)
	}
	return err
}
