package httpgrace

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"sync"
)

func tlsConfig(cert tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{cert}}
}

func tlsClient(nc net.Conn, pool *x509.CertPool) *tls.Conn {
	return tls.Client(nc, &tls.Config{RootCAs: pool, ServerName: "localhost"})
}

func serving(srv server, ln net.Listener) chan error {
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	return served
}

func answering(c *client) chan error {
	answered := make(chan error, 1)
	go func() {
		answered <- c.get("/")
		c.nc.Close()
	}()
	return answered
}

func reading(nc net.Conn) chan string {
	said := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(nc)
		said <- string(b)
	}()
	return said
}

// gatedListener accepts nothing until it is opened.
type gatedListener struct {
	*net.TCPListener
	open chan struct{}
}

func (l *gatedListener) Accept() (net.Conn, error) {
	<-l.open
	return l.TCPListener.Accept()
}

type event struct {
	c    chan struct{}
	fire func()
}

func newEvent() event {
	c := make(chan struct{})
	return event{c, func() { close(c) }}
}

// pipeListener is a listener of in-memory connections, for virtual time.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) dial() net.Conn {
	here, there := net.Pipe()
	l.conns <- there
	return here
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close may be called by the test and by the server, at the same time, as that
// of a real listener.
func (l *pipeListener) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		close(l.done)
		err = nil
	})
	return err
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }
