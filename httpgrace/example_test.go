package httpgrace_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-handover/handover/httpgrace"
)

// A server that drains when it is told to stop. With package upgrader, done is
// Upgrader.Done, the listeners come from Upgrader.Listen, and Hurry is
// Upgrader.Hurry.
func ExampleServer_ServeUntil() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	srv := &httpgrace.Server{
		Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "hello")
		})},
		DrainTimeout: 30 * time.Second,
	}

	go func() { // somebody who asks, and stops the server
		resp, err := http.Get("http://" + ln.Addr().String())
		if err != nil {
			fmt.Println(err)
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		fmt.Println(string(body))
		http.DefaultClient.CloseIdleConnections()
		stop()
	}()

	err = srv.ServeUntil(ctx.Done(), ln)
	fmt.Println("drained:", err)
	// Output:
	// hello
	// drained: <nil>
}

// One call serves listeners with and without TLS. The certificates are those of
// the TLSConfig.
func ExampleTLS() {
	serve := func(done <-chan struct{}, plain, encrypted net.Listener, srv *httpgrace.Server) error {
		return srv.ServeUntil(done, plain, httpgrace.TLS(encrypted))
	}
	_ = serve
}

// A program that calls Shutdown of net/http does not change but for the type.
// Serve returns when everything is over, so main may end there.
func ExampleServer_Shutdown() {
	srv := &httpgrace.Server{Server: &http.Server{Addr: "127.0.0.1:0"}}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			log.Print(err)
		}
	}()
	fmt.Println(srv.ListenAndServe())
	// Output: http: Server closed
}

// Server-sent events end when the server drains, with a whole last event. The
// client connects again, and reaches the next process.
func ExampleDraining() {
	events := func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case t := <-tick.C:
				fmt.Fprintf(w, "data: %v\n\n", t)
				if http.NewResponseController(w).Flush() != nil {
					return
				}
			case <-httpgrace.Draining(r.Context()):
				return
			case <-r.Context().Done():
				return
			}
		}
	}
	http.HandleFunc("/events", events)
}

// A load balancer that asks /healthz/ready takes the server out of its list
// within five seconds, before anything changes for the clients. In an upgrade
// nothing of this happens: the next process is ready when this one drains.
func ExampleServer_Health() {
	srv := &httpgrace.Server{LameDuck: 5 * time.Second}
	mux := http.NewServeMux()
	mux.Handle("/healthz/", srv.Health()) // /healthz/live and /healthz/ready
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "hello")
	})
	srv.Server = &http.Server{Addr: ":8080", Handler: mux}
}

// Clients resume their sessions with the next process. How the keys get there is
// the program's: they are secrets, as the certificate's key is.
func ExampleSessionTickets() {
	serve := func(srv *httpgrace.Server, handedOver []byte) error {
		tickets := new(httpgrace.SessionTickets)
		if handedOver != nil {
			if err := tickets.UnmarshalBinary(handedOver); err != nil {
				log.Print(err)
			}
		}
		tickets.Use(srv.TLSConfig)
		return srv.ListenAndServeTLS("cert.pem", "key.pem")
	}
	_ = serve
}

// Clients that are told apart by their connection, as NTLM does it, keep their
// process until they close.
func ExampleServer_keepConn() {
	known := make(map[string]bool) // by remote address; guarded by a lock, in a real program
	srv := &httpgrace.Server{Server: &http.Server{Addr: ":8080"}}
	srv.KeepConn = func(c net.Conn) bool { return known[c.RemoteAddr().String()] }
	serve := srv.ListenAndServe
	_ = serve
}
