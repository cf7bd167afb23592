package load

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

// Handler answers as the clients expect it, for servers under test that are
// not cmd/demo.
func Handler(generation int, version string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "pid=%d generation=%d version=%s\n", os.Getpid(), generation, version)
	})
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		// All of it first: the clients do not read while they write.
		if body, err := io.ReadAll(r.Body); err == nil {
			_, _ = w.Write(body) // the client counts what it loses
		}
	})
	mux.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		d := held(r)
		if wait(r, d) {
			_, _ = io.WriteString(w, slowBody(d))
		}
	})
	mux.HandleFunc("GET /stream", func(w http.ResponseWriter, r *http.Request) {
		for i := range held(r) / streamPace {
			fmt.Fprintf(w, "line %d\n", i+1)
			if http.NewResponseController(w).Flush() != nil || !wait(r, streamPace) {
				return
			}
		}
		fmt.Fprintln(w, "end")
	})
	return mux
}

func held(r *http.Request) time.Duration {
	ms, _ := strconv.Atoi(r.FormValue("ms")) // the client counts a wrong answer
	return time.Duration(ms) * time.Millisecond
}

// wait reports false if the client has gone.
func wait(r *http.Request, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-r.Context().Done():
		return false
	}
}
