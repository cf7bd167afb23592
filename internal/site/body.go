package site

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// blockSize is that of one block of /download.
const blockSize = 4 << 10

// download sends blocks that no other seed has, so that a client notices bytes
// that belong to somebody else.
func download(w http.ResponseWriter, r *http.Request) {
	ms, err := number(r, "ms")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	seed := r.FormValue("seed")
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(parts(ms)*blockSize))
	paced(w, ms, func(i int) string {
		line := fmt.Sprintf("%s block %d\n", seed, i)
		return strings.Repeat(line, blockSize/len(line)+1)[:blockSize]
	})
}

// cached never changes: who has it is answered 304.
func cached(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Etag", `"1"`)
	http.ServeContent(w, r, "cached.txt", time.Time{}, strings.NewReader("cached\n"))
}

// trailers echoes a body that arrives in chunks, and the trailer after it.
func trailers(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<20))
	check := r.Trailer.Get("X-Check")
	if err != nil || check == "" {
		http.Error(w, fmt.Sprintf("want the trailer X-Check (%v)", err), http.StatusBadRequest)
		return
	}
	w.Header().Set("Trailer", "X-Check")
	_, _ = w.Write(body) // the client's loss
	w.Header().Set("X-Check", check)
}
