package site

import (
	_ "embed" // page.html
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

// streamPace is the time from one line of /stream, block of /download and event
// of /events to the next.
const streamPace = 10 * time.Millisecond

//go:embed page.html
var page []byte

// Handler answers for one generation of a server.
func Handler(generation int, version string) http.Handler {
	var kept heap
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "pid=%d generation=%d version=%s\n", os.Getpid(), generation, version)
	})
	mux.HandleFunc("POST /echo", echo)
	mux.HandleFunc("GET /slow", slow)
	mux.HandleFunc("GET /stream", stream)
	mux.HandleFunc("GET /download", download)
	mux.HandleFunc("GET /cached", cached)
	mux.HandleFunc("POST /trailers", trailers)
	mux.HandleFunc("GET /events", events)
	mux.HandleFunc("GET /heap", kept.grow)
	mux.HandleFunc("GET /ws", webSocket)
	mux.HandleFunc("GET /page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write(page) // the client's loss
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// echo reads the whole body first: HTTP/1 clients send all of it before they
// read.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // the client's loss
}

func slow(w http.ResponseWriter, r *http.Request) {
	ms, err := number(r, "ms")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case <-time.After(time.Duration(ms) * time.Millisecond):
		fmt.Fprintf(w, "slow ms=%d\n", ms)
	case <-r.Context().Done():
	}
}

func stream(w http.ResponseWriter, r *http.Request) {
	ms, err := number(r, "ms")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if paced(w, ms, func(i int) string { return fmt.Sprintf("line %d\n", i+1) }) {
		fmt.Fprintln(w, "end")
	}
}

// paced writes a part in each streamPace of ms milliseconds. It reports false
// if the client has gone.
func paced(w http.ResponseWriter, ms int, part func(i int) string) bool {
	out := http.NewResponseController(w)
	tick := time.NewTicker(streamPace)
	defer tick.Stop()
	for i := range parts(ms) {
		if _, err := io.WriteString(w, part(i)); err != nil || out.Flush() != nil {
			return false
		}
		<-tick.C
	}
	return true
}

func parts(ms int) int { return int(time.Duration(ms) * time.Millisecond / streamPace) }

// heap keeps memory, to show that a large process upgrades as fast as a small one.
type heap struct {
	mu   sync.Mutex
	kept [][]byte
}

func (h *heap) grow(w http.ResponseWriter, r *http.Request) {
	mb, err := number(r, "mb")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	b := make([]byte, mb<<20)
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 1
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kept = append(h.kept, b)
	fmt.Fprintf(w, "heap mb=%d\n", mb)
}

// number reads a form value that is neither negative nor absurd.
func number(r *http.Request, name string) (int, error) {
	n, err := strconv.Atoi(r.FormValue(name))
	if err != nil || n < 0 || n > 1<<20 {
		return 0, fmt.Errorf("%s=%q: want a number from 0 to %d", name, r.FormValue(name), 1<<20)
	}
	return n, nil
}
