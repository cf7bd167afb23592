//go:build unix

package upgradertest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/go-handover/handover/httpgrace"
	"github.com/go-handover/handover/upgrader"
)

func TestMain(m *testing.M) { Main(m, serverMain) }

// serverMain is the server that is tested: this test binary. FAULT, in its
// environment, is what is wrong with it.
func serverMain() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

func serve() error {
	var o upgrader.Options
	f := flag.NewFlagSet("server", flag.ContinueOnError)
	f.StringVar(&o.ControlSocket, "control", "", "")
	f.StringVar(&o.PIDFile, "pidfile", "", "")
	f.DurationVar(&o.Probation, "probation", 50*time.Millisecond, "")
	f.DurationVar(&o.ReadyTimeout, "ready-timeout", 0, "")
	slow := f.Duration("slow", 0, "")
	f.SetOutput(io.Discard)
	if err := f.Parse(os.Args[1:]); err != nil {
		return err
	}
	up, err := upgrader.New(o)
	if err != nil {
		return err
	}
	if err := up.HandleSignals(context.Background(), upgrader.Signals{}); err != nil {
		return err
	}
	ln, err := up.Listen(context.Background(), "http", "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if up.Generation() == 1 {
			time.Sleep(*slow)
		}
		fmt.Fprintf(w, "pid=%d generation=%d\n", os.Getpid(), up.Generation())
	})}
	served := make(chan error, 1)
	fault := os.Getenv("FAULT")
	graceful := &httpgrace.Server{Server: srv, Hurry: up.Hurry()}
	up.CountConnections(func() int { return graceful.Stats().Total() })
	go func() {
		if fault == "shutdown" {
			served <- shutdown(up, srv, func() error { return srv.Serve(ln) })
		} else {
			served <- graceful.ServeUntil(up.Done(), ln)
		}
	}()
	if up.Generation() > 1 || fault == "first" {
		before(fault)
	}
	if err := up.Ready(); err != nil {
		return err
	}
	fmt.Printf("GORACE=%s\n", os.Getenv("GORACE"))
	fmt.Printf("generation %d serves on %s\n", up.Generation(), ln.Addr())
	if up.Generation() > 1 && fault == "dies" {
		os.Exit(4)
	}
	err = <-served
	if fault == "leaves" || fault == "hides" {
		return errors.Join(err, leave(fault == "hides"))
	}
	up.Wait()
	return err
}

// leave starts a process that outlives this one.
func leave(hidden bool) error {
	helper := exec.Command("sleep", "60")
	if hidden {
		helper.Env, helper.Stdout = []string{"A=B"}, os.Stdout
	}
	if err := helper.Start(); err != nil {
		return err
	}
	fmt.Printf("helper %d\n", helper.Process.Pid)
	return nil
}

// before is what happens before Ready.
func before(fault string) {
	switch fault {
	case "hangs", "first":
		select {}
	case "exits":
		fmt.Fprintln(os.Stderr, "no database")
		os.Exit(3)
	case "races":
		fmt.Fprintln(os.Stderr, "WARNING: DATA RACE")
	}
}

// shutdown is the drain of net/http as it is often done: Serve returns when
// Shutdown is called and not when it is over, and then the program ends.
func shutdown(up *upgrader.Upgrader, srv *http.Server, serve func() error) error {
	go func() {
		<-up.Done()
		_ = srv.Shutdown(context.Background())
	}()
	if err := serve(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
