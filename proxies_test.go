//go:build linux

package handover

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-handover/handover/internal/proctest"
	"github.com/go-handover/handover/internal/proctest/load"
	"github.com/go-handover/handover/internal/site"
)

// proxy starts a proxy in front of the server at an address, with connections
// that are kept to both sides and no second attempts. It returns where the
// proxy listens, as the load package wants it.
type proxy func(t *testing.T, server string) (target string)

// TestRealProxiesLoseNothing: a proxy has what a browser has not, kept
// connections that are busy all the time.
func TestRealProxiesLoseNothing(t *testing.T) {
	for name, proxy := range map[string]proxy{"nginx": nginx, "HAProxy": haproxy} {
		t.Run(name, func(t *testing.T) {
			keeps(t, proxy)
			s := proctest.Start(t, proctest.Demo(t, "v1"), quick...)
			loads, end := under(t, mix, proxy(t, s.Addr("http-0")))
			upgrades(s, rounds(), demos(t), loads, nil)
			answered(t, loads[0], rounds())
			end()
		})
	}
}

// keeps asserts that the proxy, so configured, does keep its connections.
func keeps(t *testing.T, proxy proxy) {
	t.Helper()
	var connections atomic.Int64
	server := httptest.NewUnstartedServer(site.Handler(1, "v1"))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	l, err := load.Start(t.Context(), load.Config{
		Target:   proxy(t, server.Listener.Addr().String()),
		Clients:  map[load.Kind]int{load.Get: 1, load.Post: 1},
		Requests: 100,
	})
	if err != nil {
		t.Fatal(err)
	}
	<-l.Done()
	if r := l.Stop(); r.Total.Failed > 0 || connections.Load() > 2 {
		t.Errorf("%d connections for 2 clients\n%s", connections.Load(), r)
	}
}

// nginx sends some requests again unless it is told not to. All its files are
// in a directory of the test.
func nginx(t *testing.T, server string) string {
	t.Helper()
	const config = `
daemon off;
worker_processes 1;
user root; # ignored if it is somebody else who runs this
pid DIR/pid;
error_log stderr notice;
events { worker_connections 1024; }
http {
	access_log DIR/access.log;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	keepalive_requests 1000000;
	upstream demo {
		server SERVER;
		keepalive 64;
		keepalive_requests 1000000;
	}
	server {
		listen unix:DIR/socket;
		location / {
			proxy_pass http://demo;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_next_upstream off;
			proxy_buffering off;
		}
	}
}
`
	path := installed(t, "nginx", "the Debian package nginx-light")
	dir := t.TempDir()
	file := configured(t, dir, config, server)
	p := start(t, nil, path, "-p", dir, "-c", file, "-e", "stderr")
	p.errors.says(t, "start worker process") // it listens by then
	return "unix:" + filepath.Join(dir, "socket")
}

// haproxy inherits its listener from the test, so nobody has to wait for it.
func haproxy(t *testing.T, server string) string {
	t.Helper()
	const config = `
defaults
	mode http
	timeout connect 30s
	timeout client 5m
	timeout server 5m
	retries 0
	http-reuse always
frontend front
	bind fd@3
	default_backend demo
backend demo
	server demo SERVER
`
	path := installed(t, "haproxy", "the Debian package haproxy")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	// File makes ln blocking, which nobody accepts from here.
	inherited, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	start(t, []*os.File{inherited}, path, "-db", "-f", configured(t, t.TempDir(), config, server))
	return "http://" + ln.Addr().String()
}

// configured writes a configuration and returns its path.
func configured(t *testing.T, dir, config, server string) string {
	t.Helper()
	path := filepath.Join(dir, "conf")
	text := strings.NewReplacer("DIR", dir, "SERVER", server).Replace(config)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
