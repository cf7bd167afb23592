package httpgrace

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"
)

// The inner servers are configured like the caller's. This fails when a new
// version of Go brings a field that is not passed on.
func TestEveryFieldReachesTheInnerServers(t *testing.T) {
	hs := &http.Server{
		Addr:         "a",
		TLSConfig:    &tls.Config{},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ErrorLog:     log.New(io.Discard, "", 0),
		HTTP2:        &http.HTTP2Config{},
		Protocols:    new(http.Protocols),
	}
	hooked := []string{"Handler", "ConnState", "ConnContext", "BaseContext"} // call the caller's: TestRequestContextAndHooks
	given := reflect.ValueOf(hs).Elem()
	for i := range given.NumField() {
		switch f := given.Field(i); {
		case f.CanSet() && f.CanInt():
			f.SetInt(int64(i + 1))
		case f.CanSet() && f.Kind() == reflect.Bool:
			f.SetBool(true)
		}
	}
	inner := reflect.ValueOf((&Server{Server: hs}).inner()).Elem()
	for i := range given.NumField() {
		switch f := given.Type().Field(i); {
		case !f.IsExported() || slices.Contains(hooked, f.Name):
		case given.Field(i).IsZero():
			t.Errorf("%s is not set by this test: is it passed on?", f.Name)
		case f.Type.Kind() == reflect.Map || f.Type.Kind() == reflect.Pointer:
			if given.Field(i).Pointer() != inner.Field(i).Pointer() {
				t.Errorf("%s is another one", f.Name)
			}
		case !given.Field(i).Equal(inner.Field(i)):
			t.Errorf("%s is %v", f.Name, inner.Field(i))
		}
	}
}

func TestCallersServerIsNotChanged(t *testing.T) {
	var hs *http.Server
	r := startRig(t, rigOptions{kind: graceKind, tls: true, edit: func(s *http.Server) {
		s.Handler = nil
		s.ConnState = nil
		hs = s
	}})
	config := hs.TLSConfig.Clone()
	nc := r.dialRaw()
	tc := tls.Client(nc, r.tls)
	if err := newClient(t, tc).send(get("/nobody")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(tc, make([]byte, len("HTTP/1.1 404"))); err != nil { // by http.DefaultServeMux
		t.Fatal(err)
	}
	if hs.Handler != nil || hs.ConnState != nil || hs.ConnContext != nil || hs.BaseContext != nil || hs.TLSNextProto != nil {
		t.Errorf("hooks were set: %+v", hs)
	}
	if !slices.Equal(config.NextProtos, hs.TLSConfig.NextProtos) {
		t.Errorf("NextProtos %v", hs.TLSConfig.NextProtos)
	}
}

func TestFunctionsRegisteredWithTheCallersServerAreCalled(t *testing.T) {
	called := make(chan struct{})
	hs := new(http.Server)
	hs.RegisterOnShutdown(func() { close(called) })
	srv := &Server{Server: hs}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	<-called
}

// A protocol of the caller's is his; the drain waits for its connections.
func TestProtocolOfTheCaller(t *testing.T) {
	release := make(chan struct{})
	var hs *http.Server
	r := startRig(t, rigOptions{kind: graceKind, tls: true, edit: func(s *http.Server) {
		hs = s
		hs.TLSConfig.NextProtos = []string{"echo"}
		hs.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
			"echo": func(srv *http.Server, tc *tls.Conn, h http.Handler) {
				if srv != hs || h == nil {
					t.Error("called with another server or no handler")
				}
				buf := make([]byte, 1)
				io.ReadFull(tc, buf)
				tc.Write(buf)
				<-release
				tc.Write(buf)
			},
		}
	}})
	r.tls.NextProtos = []string{"echo"}
	c := r.dial()
	c.send("x")
	if _, err := c.br.ReadByte(); err != nil {
		t.Fatal(err)
	}
	r.shutdown(20 * time.Second)
	r.grace().dismissIdle()
	close(release)
	if b, err := io.ReadAll(c.br); string(b) != "x" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	c.nc.Close()
	r.drained()
	if st := r.grace().Stats(); st != (Stats{}) {
		t.Errorf("%+v", st)
	}
}

// One server, several listeners of every kind, one call.
func TestServeUntilServesListenersOfEveryKind(t *testing.T) {
	cert, pool := testCertificate()
	srv := &Server{Server: &http.Server{
		Handler:   http.HandlerFunc(hello),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
	}}
	listen := func(network, address string) net.Listener {
		ln, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		return ln
	}
	path := filepath.Join(t.TempDir(), "socket")
	first, second := listen("tcp", "127.0.0.1:0"), listen("tcp", "127.0.0.1:0")
	unix, encrypted := listen("unix", path), listen("tcp", "127.0.0.1:0")
	done := make(chan struct{})
	served := make(chan error, 1)
	go func() { served <- srv.ServeUntil(done, first, second, unix, TLS(encrypted)) }()

	var clients []*client
	for _, ln := range []net.Listener{first, second, unix, encrypted} {
		nc, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if ln == encrypted {
			nc = tls.Client(nc, &tls.Config{RootCAs: pool, ServerName: "localhost"})
		}
		c := newClient(t, nc)
		c.ask(get("/"))
		clients = append(clients, c)
	}
	close(done)
	<-srv.began
	for _, c := range clients {
		c.askUntilTold()
		if err := c.ends(); err != nil {
			t.Errorf("%v: %v", c.nc.RemoteAddr(), err)
		}
		c.nc.Close()
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unix socket is still there: %v", err)
	}
	if _, err := net.Dial("tcp", first.Addr().String()); err == nil {
		t.Error("somebody still accepts")
	}
}

// Who takes a listener from TLS for an ordinary one must not serve in the clear.
func TestListenerFromTLSCannotBeServedByOthers(t *testing.T) {
	inner := newPipeListener()
	err := http.Serve(TLS(inner), http.HandlerFunc(hello))
	if err == nil || errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

func TestServeTLSWithoutCertificate(t *testing.T) {
	var srv Server
	ln := newPipeListener()
	defer ln.Close()
	if err := srv.ServeTLS(ln, "", ""); err == nil || errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	if err := srv.ServeUntil(nil, TLS(ln)); err == nil || errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	srv = Server{Server: &http.Server{Addr: "127.0.0.1:0"}}
	if err := srv.ListenAndServeTLS("missing", "missing"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestErrorOfClosingAListenerIsReported(t *testing.T) {
	failure := errors.New("no")
	var srv Server
	ln := &badCloser{newPipeListener(), failure}
	served := serving(&srv, ln)
	ln.dial().Close() // it serves
	if err := srv.Shutdown(t.Context()); !errors.Is(err, failure) {
		t.Error(err)
	}
	<-served
}

type badCloser struct {
	*pipeListener
	err error
}

func (l *badCloser) Close() error {
	l.pipeListener.Close()
	return l.err
}
