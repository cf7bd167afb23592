package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-handover/handover/upgrader"
)

// The names of what a process hands on to the next one.
const (
	stateRequests = "requests"
	stateCache    = "cache"
)

// knowledge is what a process would forget when it is replaced.
type knowledge struct {
	generation int
	requests   requests
	cache      cache
	warm       bool // the predecessor's cache is there
}

// takeOver finds what the predecessor has handed on, and sees to it that the
// next process finds it too.
func (k *knowledge) takeOver(up *upgrader.Upgrader, keepCache bool) error {
	k.generation = up.Generation()
	_, err := restore(up, stateRequests, k.requests.set)
	if err == nil && keepCache {
		k.warm, err = restore(up, stateCache, k.cache.set)
		err = errors.Join(err, up.SetState(stateCache, &k.cache))
	}
	return errors.Join(err, up.SetState(stateRequests, &k.requests), up.OnStateDelta(stateRequests, k.requests.set))
}

// restore gives the bytes of a state to set, if there are any.
func restore(up *upgrader.Upgrader, name string, set func([]byte) error) (found bool, err error) {
	s, err := up.State(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, errors.Join(set(s.Bytes()), s.Close())
}

// serve adds what a client can see of it to mux, and counts the requests.
func (k *knowledge) serve(mux *http.ServeMux) http.Handler {
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "requests=%d cached=%d warm=%v\n", k.requests.n.Load(), k.cache.len(), k.warm)
	})
	mux.HandleFunc("GET /lookup", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, k.cache.lookUp(r.FormValue("key"), k.generation))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.requests.n.Add(1)
		mux.ServeHTTP(w, r)
	})
}

// requests counts those of all generations. What comes while the next process
// gets ready is its difference; only what the old one still answers after that,
// in its drain, is not counted.
type requests struct{ n atomic.Int64 }

func (r *requests) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(binary.BigEndian.AppendUint64(nil, uint64(r.n.Load())))
	return int64(n), err
}

func (r *requests) WriteDelta(w io.Writer) error {
	_, err := r.WriteTo(w)
	return err
}

func (r *requests) set(b []byte) error {
	if len(b) != 8 {
		return fmt.Errorf("a count of %d bytes, want 8", len(b))
	}
	r.n.Store(int64(binary.BigEndian.Uint64(b)))
	return nil
}

// cache holds what was looked up. Another version of the program may write it,
// so it goes on in a format that grows: JSON.
type cache struct {
	mu      sync.Mutex
	entries map[string]string
}

// lookUp answers at once what was looked up before, by whatever generation.
func (c *cache) lookUp(key string, generation int) string {
	c.mu.Lock()
	value, found := c.entries[key]
	c.mu.Unlock()
	if found {
		return value
	}
	time.Sleep(20 * time.Millisecond) // a database
	value = fmt.Sprintf("%s, looked up by generation %d", key, generation)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = map[string]string{}
	}
	c.entries[key] = value
	return value
}

func (c *cache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries)
}

// WriteTo does not hold the lock while it writes: this process serves.
func (c *cache) WriteTo(w io.Writer) (int64, error) {
	c.mu.Lock()
	entries := maps.Clone(c.entries)
	c.mu.Unlock()
	return 0, json.NewEncoder(w).Encode(entries)
}

func (c *cache) set(b []byte) error { return json.Unmarshal(b, &c.entries) }
