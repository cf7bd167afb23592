package httpgrace

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMain fails the run if a descriptor or a goroutine is left behind.
func TestMain(m *testing.M) {
	before := descriptors()
	code := m.Run()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if code == 0 {
		if err := leaks(before); err != nil {
			fmt.Fprintln(os.Stderr, "leak:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// leaks gives what has been told to end a moment to do so.
func leaks(descriptorsBefore int) (err error) {
	for range 100 {
		err = nil
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		for _, g := range strings.Split(string(buf), "\n\n")[1:] {
			if !strings.Contains(g, "testing.") && !strings.Contains(g, "os/signal") && !strings.Contains(g, "runtime.") {
				err = fmt.Errorf("goroutine:\n%s", g)
			}
		}
		if n := descriptors(); n > descriptorsBefore {
			err = errors.Join(err, fmt.Errorf("%d descriptors, %d before", n, descriptorsBefore))
		}
		if err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// descriptors counts the open ones without the poller's own, which appear with
// the first socket. Zero where they cannot be counted.
func descriptors() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(to, "anon_inode:") {
			n++
		}
	}
	return n
}

// A server is what http.Server and Server have in common.
type server interface {
	Serve(net.Listener) error
	ServeTLS(net.Listener, string, string) error
	Shutdown(context.Context) error
	RegisterOnShutdown(func())
	SetKeepAlivesEnabled(bool)
	Close() error
}

// A kind makes a server of a configuration.
type kind struct {
	name string
	make func(*http.Server) server
}

var (
	plainKind = kind{"net/http", func(hs *http.Server) server { return hs }}
	graceKind = kind{"httpgrace", func(hs *http.Server) server { return &Server{Server: hs} }}
	kinds     = []kind{plainKind, graceKind}
)

// A rig is a server that runs for one test, and what can be waited for.
type rig struct {
	t      *testing.T
	srv    server
	addr   string
	tls    *tls.Config // for clients; nil: in the clear
	began  chan struct{}
	done   chan struct{} // Shutdown has returned err
	err    error
	serve  chan error
	states chan http.ConnState
	read   chan int      // how much the server has read, if spied on
	hold   chan struct{} // full: reads are held before they start, if spied on

	started chan struct{} // a read starts, if spied on
}

type rigOptions struct {
	kind    kind
	handler http.HandlerFunc // nil: hello
	tls     bool
	spy     bool // report reads; hold them while there is something in hold
	edit    func(*http.Server)
	server  func(*Server)
}

func hello(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	fmt.Fprintf(w, "hello %s %s", r.URL.Path, body)
}

func startRig(t *testing.T, o rigOptions) *rig {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if o.handler == nil {
		o.handler = hello
	}
	r := &rig{
		t: t, addr: ln.Addr().String(),
		began: make(chan struct{}), done: make(chan struct{}),
		serve: make(chan error, 1), states: make(chan http.ConnState, 1000),
		read: make(chan int, 10000), hold: make(chan struct{}, 1), started: make(chan struct{}, 10000),
	}
	hs := &http.Server{
		Handler:   o.handler,
		ErrorLog:  log.New(io.Discard, "", 0),
		ConnState: func(_ net.Conn, st http.ConnState) { r.states <- st },
	}
	if o.tls {
		cert, pool := testCertificate()
		hs.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
		r.tls = &tls.Config{RootCAs: pool, ServerName: "localhost"}
	}
	if o.edit != nil {
		o.edit(hs)
	}
	r.srv = o.kind.make(hs)
	if s, ok := r.srv.(*Server); ok && o.server != nil {
		o.server(s)
	}
	r.srv.RegisterOnShutdown(func() { close(r.began) })
	if o.spy {
		ln = &spyListener{ln, r}
	}
	go func() {
		if o.tls {
			r.serve <- r.srv.ServeTLS(ln, "", "")
		} else {
			r.serve <- r.srv.Serve(ln)
		}
	}()
	t.Cleanup(func() {
		r.srv.Close()
		<-r.serve
	})
	return r
}

func (r *rig) grace() *Server { return r.srv.(*Server) }

// shutdown starts Shutdown and returns when it has begun.
func (r *rig) shutdown(limit time.Duration) {
	go func() {
		defer close(r.done)
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		r.err = r.srv.Shutdown(ctx)
	}()
	<-r.began
}

// drained waits for Shutdown and fails unless it was clean.
func (r *rig) drained() {
	r.t.Helper()
	<-r.done
	if r.err != nil {
		r.t.Errorf("Shutdown: %v", r.err)
	}
}

func (r *rig) waitState(want http.ConnState) {
	r.t.Helper()
	limit := time.After(10 * time.Second)
	for {
		select {
		case st := <-r.states:
			if st == want {
				return
			}
		case <-limit:
			r.t.Fatalf("no connection became %v", want)
		}
	}
}

// A client never retries.
type client struct {
	t  *testing.T
	nc net.Conn
	br *bufio.Reader
}

func (r *rig) dialRaw() net.Conn {
	r.t.Helper()
	nc, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	return nc
}

// dial connects and waits until the server has accepted.
func (r *rig) dial() *client {
	r.t.Helper()
	nc := r.dialRaw()
	if r.tls != nil {
		tc := tls.Client(nc, r.tls)
		if err := tc.Handshake(); err != nil {
			r.t.Fatal(err)
		}
		nc = tc
	}
	r.waitState(http.StateNew)
	return newClient(r.t, nc)
}

func newClient(t *testing.T, nc net.Conn) *client {
	t.Helper()
	return &client{t, nc, bufio.NewReader(nc)}
}

func get(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n" }

func post(path, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
}

func (c *client) send(s string) error {
	_, err := io.WriteString(c.nc, s)
	return err
}

// answer reads a response and reports whether the server will close.
func (c *client) answer() (body string, closes bool, err error) {
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		return "", false, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", resp.Status)
	}
	return string(b), resp.Close, err
}

// ask is a round trip that must succeed.
func (c *client) ask(request string) (body string, closes bool) {
	c.t.Helper()
	if err := c.send(request); err != nil {
		c.t.Fatal(err)
	}
	body, closes, err := c.answer()
	if err != nil {
		c.t.Fatal(err)
	}
	return body, closes
}

// askUntilTold asks until the close is announced. It need not be on the first
// answer of the drain, if the request came so quickly that it was read ahead.
func (c *client) askUntilTold() {
	c.t.Helper()
	for range 100 {
		if _, closes := c.ask(post("/", "once more")); closes {
			return
		}
	}
	c.t.Error("the close is never announced")
}

// get is a round trip that may fail.
func (c *client) get(path string) error {
	if err := c.send(get(path)); err != nil {
		return err
	}
	_, _, err := c.answer()
	return err
}

// ends waits for the end of the stream.
func (c *client) ends() error {
	_, err := c.br.ReadByte()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		return errors.New("a byte too many")
	}
	return err
}

// spyListener reports what the server reads, and holds its reads.
type spyListener struct {
	net.Listener
	r *rig
}

func (l *spyListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &spyConn{nc.(*net.TCPConn), l.r}, nil
}

type spyConn struct {
	*net.TCPConn
	r *rig
}

func (c *spyConn) Read(p []byte) (int, error) {
	c.r.hold <- struct{}{} // a test that fills hold stops us here
	<-c.r.hold
	select {
	case c.r.started <- struct{}{}:
	default:
	}
	n, err := c.TCPConn.Read(p)
	if n > 0 {
		c.r.read <- n
	}
	return n, err
}

// reads waits until the server has read n bytes.
func (r *rig) reads(n int) {
	for n > 0 {
		n -= <-r.read
	}
}

var testCertificate = sync.OnceValues(func() (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "localhost"},
		DNSNames:     []string{"localhost"},
		NotAfter:     time.Now().Add(time.Hour),
		IsCA:         true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
})
