package site

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/go-handover/handover/httpgrace"
)

// events are numbered; a client that names the last one that it has seen gets
// the next one first. When this process drains, the stream ends after a whole
// event, and the client asks the next process for the rest.
func events(w http.ResponseWriter, r *http.Request) {
	last, _ := strconv.Atoi(r.Header.Get("Last-Event-ID")) // none: 0
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	tick := time.NewTicker(streamPace)
	defer tick.Stop()
	for id := last + 1; ; id++ {
		if _, err := fmt.Fprintf(w, "id: %d\ndata: event %d\n\n", id, id); err != nil || out.Flush() != nil {
			return // the client has gone
		}
		select {
		case <-tick.C:
		case <-httpgrace.Draining(r.Context()):
			return
		case <-r.Context().Done():
			return
		}
	}
}
