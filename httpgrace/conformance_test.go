package httpgrace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// An exchange is what a client sends on a new connection, and a handler. The
// bytes that come back until the server closes, and the states of the
// connection, must be those of net/http.
type exchange struct {
	name    string
	send    string
	handler http.HandlerFunc
	edit    func(*http.Server)
	prepare func(server)
}

var exchanges = []exchange{
	{name: "GET", send: closing("GET", "/")},
	{name: "two requests", send: get("/1") + closing("GET", "/2")},
	{name: "HEAD", send: closing("HEAD", "/")},
	{name: "POST", send: "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"},
	{name: "chunked POST", send: "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"},
	{name: "HTTP/1.0", send: "GET / HTTP/1.0\r\n\r\n"},
	{name: "HTTP/1.0 with keep-alive", send: "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n"},
	{name: "no host", send: "GET / HTTP/1.1\r\n\r\n"},
	{name: "garbage", send: "\x00\x01\x02\r\n\r\n"},
	{name: "OPTIONS *", send: "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"},
	{
		name: "OPTIONS * for the handler", send: "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		edit: func(hs *http.Server) { hs.DisableGeneralOptionsHandler = true },
	},
	{name: "unknown transfer coding", send: "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: x\r\n\r\n"},
	{name: "unknown expectation", send: "POST / HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n"},
	{name: "100-continue", send: "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"},
	{
		name: "body not read", send: "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + closing("GET", "/"),
		handler: func(http.ResponseWriter, *http.Request) {},
	},
	{
		name: "header too large", send: "GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 9000) + "\r\n\r\n",
		edit: func(hs *http.Server) { hs.MaxHeaderBytes = 1000 },
	},
	{
		name: "304", send: closing("GET", "/"),
		handler: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) },
	},
	{
		name: "flush", send: closing("GET", "/"),
		handler: func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "a")
			w.(http.Flusher).Flush()
			io.WriteString(w, "b")
		},
	},
	{
		name: "trailer", send: closing("GET", "/"),
		handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "Sum")
			io.WriteString(w, "a")
			w.Header().Set("Sum", "1")
		},
	},
	{
		name: "informational response", send: closing("GET", "/"),
		handler: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusEarlyHints) },
	},
	{
		name: "abort", send: get("/"),
		handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "a")
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
	},
	{
		name: "hijack", send: get("/") + "what was read ahead",
		handler: func(w http.ResponseWriter, _ *http.Request) {
			nc, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			defer nc.Close()
			ahead := make([]byte, len("what was read ahead"))
			io.ReadFull(rw, ahead)
			fmt.Fprintf(nc, "%s", ahead)
		},
	},
	{
		name: "full duplex", send: "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
		handler: func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).EnableFullDuplex()
			io.WriteString(w, "first ")
			http.NewResponseController(w).Flush()
			io.Copy(w, r.Body)
		},
	},
	{
		name: "read deadline of a handler", send: "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nab",
		handler: func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Millisecond))
			_, err := io.ReadAll(r.Body)
			fmt.Fprint(w, errors.Is(err, os.ErrDeadlineExceeded))
		},
	},
	{
		name: "write deadline of a handler", send: closing("GET", "/"),
		handler: func(w http.ResponseWriter, _ *http.Request) {
			out := http.NewResponseController(w)
			out.SetWriteDeadline(time.Now().Add(-time.Second))
			io.WriteString(w, "too late")
			if err := out.Flush(); !errors.Is(err, os.ErrDeadlineExceeded) {
				out.SetWriteDeadline(time.Time{})
				fmt.Fprint(w, err)
			}
		},
	},
	{
		name: "read timeout", send: "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab",
		edit: func(hs *http.Server) { hs.ReadTimeout = 10 * time.Millisecond },
		handler: func(w http.ResponseWriter, r *http.Request) {
			_, err := io.ReadAll(r.Body)
			fmt.Fprint(w, errors.Is(err, os.ErrDeadlineExceeded))
		},
	},
	{
		name: "panic", send: get("/"),
		handler: func(http.ResponseWriter, *http.Request) { panic("of the handler") },
	},
	{
		name: "read header timeout", send: "GET / HT",
		edit: func(hs *http.Server) { hs.ReadHeaderTimeout = 10 * time.Millisecond },
	},
	{
		name: "idle timeout", send: get("/"),
		edit: func(hs *http.Server) { hs.IdleTimeout = 10 * time.Millisecond },
	},
	{
		name: "write timeout", send: closing("GET", "/"),
		edit: func(hs *http.Server) { hs.WriteTimeout = time.Minute },
	},
	{
		name: "keep-alives disabled", send: get("/") + get("/"),
		prepare: func(srv server) { srv.SetKeepAlivesEnabled(false) },
	},
	{
		name: "timeout handler", send: closing("GET", "/"),
		handler: func(w http.ResponseWriter, r *http.Request) {
			release := make(chan struct{})
			defer close(release)
			http.TimeoutHandler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				<-release
			}), time.Millisecond, "too late").ServeHTTP(w, r)
		},
	},
}

func closing(method, path string) string {
	return method + " " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
}

var dates = regexp.MustCompile(`Date: [^\r]*`)

func TestConformanceToNetHTTP(t *testing.T) {
	for _, x := range exchanges {
		t.Run(x.name, func(t *testing.T) {
			var got [2]string
			for i, k := range kinds {
				var states []string
				r := startRig(t, rigOptions{kind: k, handler: x.handler, edit: func(hs *http.Server) {
					all := hs.ConnState
					hs.ConnState = func(nc net.Conn, st http.ConnState) {
						states = append(states, st.String())
						all(nc, st)
					}
					if x.edit != nil {
						x.edit(hs)
					}
				}})
				if x.prepare != nil {
					x.prepare(r.srv)
				}
				nc := r.dialRaw()
				io.WriteString(nc, x.send)
				answer, err := io.ReadAll(nc)
				r.waitFinal()
				got[i] = fmt.Sprintf("%s\nstates %v\nerror %v", dates.ReplaceAll(answer, []byte("Date: now")), states, err)
			}
			if got[0] != got[1] {
				t.Errorf("net/http:\n%s\n\nhttpgrace:\n%s", got[0], got[1])
			}
		})
	}
}

// waitFinal waits for the last state of a connection.
func (r *rig) waitFinal() {
	r.t.Helper()
	limit := time.After(10 * time.Second)
	for {
		select {
		case st := <-r.states:
			if st == http.StateClosed || st == http.StateHijacked {
				return
			}
		case <-limit:
			r.t.Fatal("the connection has no end")
		}
	}
}

// A request finds its server, its addresses and what the caller's hooks put
// there, over every protocol, as in net/http.
func TestRequestContextAndHooks(t *testing.T) {
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			var got [2]string
			for i, k := range kinds {
				var hs *http.Server
				var ln net.Listener
				r := startRig(t, rigOptions{
					kind: k, tls: p.tls,
					handler: func(w http.ResponseWriter, r *http.Request) {
						ctx := r.Context()
						fmt.Fprintf(w, "%s server=%v local=%v remote=%v tls=%v base=%v conn=%v", r.Proto,
							ctx.Value(http.ServerContextKey).(*http.Server).Addr, // HTTP/2 has one of its own
							ctx.Value(http.LocalAddrContextKey) != nil,
							r.RemoteAddr != "",
							r.TLS != nil && r.TLS.HandshakeComplete && r.TLS.NegotiatedProtocol != "",
							ctx.Value(keyBase{}), ctx.Value(keyConn{}))
					},
					edit: func(s *http.Server) {
						hs = s
						hs.Addr = "here"
						hs.Protocols = p.spoken()
						hs.BaseContext = func(l net.Listener) context.Context {
							ln = l
							return context.WithValue(context.Background(), keyBase{}, fmt.Sprintf("%T", l))
						}
						hs.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
							return context.WithValue(ctx, keyConn{}, fmt.Sprint(ctx.Value(http.ServerContextKey) == hs, nc.RemoteAddr() != nil))
						}
					},
				})
				resp, err := r.httpClient(p).Get(r.url())
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				got[i] = string(body)
				if ln.Addr().String() != r.addr {
					t.Errorf("BaseContext was given a listener on %v", ln.Addr())
				}
			}
			if got[0] != got[1] || !strings.HasPrefix(got[0], p.proto) {
				t.Errorf("net/http:\n%s\nhttpgrace:\n%s", got[0], got[1])
			}
		})
	}
}

type (
	keyBase struct{}
	keyConn struct{}
)

func TestConnStateOverEveryProtocol(t *testing.T) {
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			var got [2][]string
			for i, k := range kinds {
				var mu sync.Mutex
				states := map[net.Conn][]string{} // of one that was used, as clients may make others too
				r := startRig(t, rigOptions{kind: k, tls: p.tls, edit: func(hs *http.Server) {
					hs.Protocols = p.spoken()
					all := hs.ConnState
					hs.ConnState = func(nc net.Conn, st http.ConnState) {
						mu.Lock()
						states[nc] = append(states[nc], fmt.Sprint(st, nc.RemoteAddr() != nil))
						mu.Unlock()
						all(nc, st)
					}
				}})
				hc := r.httpClient(p)
				for range 2 {
					resp, err := hc.Post(r.url(), "text/plain", strings.NewReader("x"))
					if err != nil {
						t.Fatal(err)
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				hc.CloseIdleConnections()
				for got[i] == nil {
					r.waitState(http.StateClosed)
					mu.Lock()
					for _, sts := range states {
						if slices.Contains(sts, "closed true") && slices.Contains(sts, "idle true") {
							got[i] = sts
						}
					}
					mu.Unlock()
				}
			}
			if !slices.Equal(got[0], got[1]) {
				t.Errorf("net/http:  %v\nhttpgrace: %v", got[0], got[1])
			}
		})
	}
}

// net/http sends a file without copying it through the process if the
// connection reads from it.
func TestFileIsSentByTheConnection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	want := bytes.Repeat([]byte("0123456789"), 100_000)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	r := startRig(t, rigOptions{
		kind:    graceKind,
		handler: func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) },
		edit: func(hs *http.Server) {
			hs.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
				if _, ok := nc.(io.ReaderFrom); !ok {
					t.Errorf("%T reads from nothing", nc)
				}
				return ctx
			}
		},
	})
	if body, _ := r.dial().ask(get("/")); body != string(want) {
		t.Errorf("got %d bytes, want %d", len(body), len(want))
	}
}

func TestConnectionsOfHooksAreWrapped(t *testing.T) {
	for _, tls := range []bool{false, true} {
		inner := make(chan net.Conn, 1)
		r := startRig(t, rigOptions{kind: graceKind, tls: tls, edit: func(hs *http.Server) {
			hs.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
				if tls {
					nc = nc.(interface{ NetConn() net.Conn }).NetConn()
				}
				inner <- nc.(interface{ NetConn() net.Conn }).NetConn()
				return ctx
			}
		}})
		r.dial()
		if nc := <-inner; fmt.Sprintf("%T", nc) != "*net.TCPConn" {
			t.Errorf("TLS %v: NetConn is a %T", tls, nc)
		}
	}
}
