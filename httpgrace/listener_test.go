package httpgrace

import (
	"errors"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// A socket that another process has made blocking holds Accept and Close for
// ever.
func TestListenerThatCannotBeStoppedIsAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &Server{Server: &http.Server{Handler: http.HandlerFunc(sleepy)}}
		ln := &stuckListener{make(chan struct{})}
		served := serving(srv, ln)
		synctest.Wait()
		start := time.Now()
		err := srv.Shutdown(t.Context())
		if err == nil || time.Since(start) != stopTimeout {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
		close(ln.release)
	})
}

type stuckListener struct{ release chan struct{} }

func (l *stuckListener) Accept() (net.Conn, error) {
	<-l.release
	return nil, net.ErrClosed
}

func (l *stuckListener) Close() error {
	<-l.release
	return nil
}
func (l *stuckListener) Addr() net.Addr { return &net.TCPAddr{Port: 80} }

// A connection that accept(2) has returned when the drain begins is drained,
// although the server does not know it yet.
func TestConnectionBeingAcceptedIsDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &Server{Server: &http.Server{Handler: http.HandlerFunc(sleepy)}}
		ln := &slowListener{conns: make(chan net.Conn, 1)}
		served := serving(srv, ln)
		synctest.Wait()
		shut := make(chan error, 1)
		go func() { shut <- srv.Shutdown(t.Context()) }()
		synctest.Wait()
		here, there := net.Pipe()
		ln.conns <- there
		if err := newClient(t, here).get("/"); err != nil {
			t.Error(err)
		}
		here.Close()
		if err := <-shut; err != nil {
			t.Error(err)
		}
		<-served
	})
}

// slowListener is not interrupted by Close: its Accept has a connection.
type slowListener struct{ conns chan net.Conn }

func (l *slowListener) Accept() (net.Conn, error) { return <-l.conns, nil }
func (l *slowListener) Close() error              { return nil }
func (l *slowListener) Addr() net.Addr            { return &net.TCPAddr{Port: 80} }
