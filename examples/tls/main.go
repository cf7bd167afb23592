// Tls is an HTTPS server whose clients resume their sessions across upgrades.
//
// What is handed over. A TLS connection cannot be: its keys are in the memory of
// the process. Its clients connect again, and with a session ticket of the old
// process that is a short handshake, without the signature of the certificate,
// if the new one has the key that encrypted the ticket. The keys travel as state:
// in sealed memory, never in a file, fresh in each upgrade, because a new one is
// made every day. With -resume=false each upgrade costs every client a full
// handshake, all at about the same time.
//
// What is limited. A key that the old process makes while the new one starts is
// not known to that: its tickets cost a full handshake, as if there were none.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/go-handover/handover/httpgrace"
	"github.com/go-handover/handover/upgrader"
)

var (
	listen    = flag.String("listen", "127.0.0.1:8443", "`address` to serve on")
	pidfile   = flag.String("pidfile", "", "`file` that names the process that serves")
	control   = flag.String("control", "", "`path` of the control socket")
	probation = flag.Duration("probation", upgrader.DefaultProbation, "how long the old process can take the service back")
	cert      = flag.String("cert", "cert.pem", "`file` with the certificate")
	key       = flag.String("key", "key.pem", "`file` with its key")
	resume    = flag.Bool("resume", true, "hand over the keys of session tickets")
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
	up, err := upgrader.New(upgrader.Options{PIDFile: *pidfile, ControlSocket: *control, Probation: *probation, Logger: log})
	if err != nil {
		return err
	}
	if err := up.HandleSignals(ctx, upgrader.Signals{}); err != nil {
		return err
	}
	ln, err := up.Listen(ctx, "https", "tcp", *listen)
	if err != nil {
		return err
	}
	log = log.With("pid", os.Getpid(), "generation", up.Generation())
	log.Info("listening", "addr", ln.Addr().String())

	srv, err := newServer(up)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- srv.ServeUntil(up.Done(), httpgrace.TLS(ln)) }() // Accept waits for Ready
	if err := up.Ready(); err != nil {
		return err
	}
	if err := <-served; up.Err() == nil { // it was not asked to end
		return err
	}
	log.Info("drained")
	up.Wait()
	return up.Err()
}

// newServer reads the certificate anew in each process: an upgrade is one way to
// renew it.
func newServer(up *upgrader.Upgrader) (*httpgrace.Server, error) {
	pair, err := tls.LoadX509KeyPair(*cert, *key)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}}
	if *resume {
		if err := handOverTickets(up, config); err != nil {
			return nil, err
		}
	}
	return &httpgrace.Server{
		Server: &http.Server{
			TLSConfig:         config,
			ReadHeaderTimeout: 10 * time.Second,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, answer(up.Generation(), r.TLS.DidResume))
			}),
		},
		Hurry: up.Hurry(),
	}, nil
}

func answer(generation int, resumed bool) string {
	return fmt.Sprintf("generation %d, resumed %t\n", generation, resumed)
}

// ticketsState is the name of the keys among the states.
const ticketsState = "session-tickets"

// handOverTickets takes the predecessor's keys over, if there are any, and hands
// them on to the next process.
func handOverTickets(up *upgrader.Upgrader, config *tls.Config) error {
	keys := new(httpgrace.SessionTickets) // without a predecessor's: new ones
	switch state, err := up.State(ticketsState); {
	case errors.Is(err, fs.ErrNotExist): // the first process, or the first build that hands keys over
	case err != nil:
		return err
	default:
		if err := errors.Join(keys.UnmarshalBinary(state.Bytes()), state.Close()); err != nil {
			return err
		}
	}
	keys.Use(config)
	return up.SetState(ticketsState, tickets{keys})
}

// tickets are written in each upgrade, with the keys of that moment.
type tickets struct{ keys *httpgrace.SessionTickets }

func (t tickets) WriteTo(w io.Writer) (int64, error) {
	b, err := t.keys.MarshalBinary()
	if err != nil {
		return 0, err
	}
	n, err := w.Write(b)
	return int64(n), err
}
