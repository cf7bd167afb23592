package httpgrace

import (
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"
	"unsafe"
)

// requester asks over one connection without allocating.
type requester struct {
	nc      net.Conn
	request []byte
	answer  [4096]byte
}

func startRequester(tb testing.TB, k kind) *requester {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	srv := k.make(&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "hello\n")
	})})
	served := serving(srv, ln)
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		nc.Close()
		srv.Close()
		<-served
	})
	q := &requester{nc: nc, request: []byte(get("/"))}
	q.ask(tb)
	return q
}

func (q *requester) ask(tb testing.TB) {
	tb.Helper()
	if _, err := q.nc.Write(q.request); err != nil {
		tb.Fatal(err)
	}
	if _, err := q.nc.Read(q.answer[:]); err != nil { // arrives in one piece
		tb.Fatal(err)
	}
}

func TestRequestCostsNoAllocation(t *testing.T) {
	const requests = 500
	per := func(k kind) float64 {
		q := startRequester(t, k)
		least := 1e9
		for range 4 { // others allocate too
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for range requests {
				q.ask(t)
			}
			runtime.ReadMemStats(&after)
			least = min(least, float64(after.Mallocs-before.Mallocs)/requests)
		}
		return least
	}
	plain, grace := per(plainKind), per(graceKind)
	t.Logf("net/http %.2f, httpgrace %.2f allocations per request", plain, grace)
	if grace > plain+0.5 { // whatever others allocate meanwhile, one each would be 1
		t.Errorf("net/http %.2f, httpgrace %.2f allocations per request", plain, grace)
	}
}

// The allocator rounds the struct up, to 224 bytes, and the server's map of
// connections has 8 bytes and a control byte for each, in a table that may be
// hardly half full. BenchmarkMemory measures what comes of it.
func TestConnectionCostsLittleMemory(t *testing.T) {
	const limit, inMap = 256, 21
	size := int(unsafe.Sizeof(tcpConn{}))
	if size > 224 || 224+inMap > limit {
		t.Errorf("the struct has %d bytes, want 224 at most", size)
	}
}

// BenchmarkMemory compares the heap of many idle connections.
func BenchmarkMemory(b *testing.B) {
	var plain, grace int
	for b.Loop() {
		plain += memoryPerConn(b, plainKind)
		grace += memoryPerConn(b, graceKind)
	}
	b.ReportMetric(float64(plain)/float64(b.N), "plain-B/conn")
	b.ReportMetric(float64(grace)/float64(b.N), "grace-B/conn")
	b.ReportMetric(float64(grace-plain)/float64(b.N), "more-B/conn")
	b.ReportMetric(0, "ns/op")
}

// memoryPerConn includes the client's end.
func memoryPerConn(tb testing.TB, k kind) int {
	tb.Helper()
	const conns = 3000
	idle := make(chan struct{}, conns)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	srv := k.make(&http.Server{
		Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
		ConnState: func(_ net.Conn, st http.ConnState) {
			if st == http.StateIdle {
				idle <- struct{}{}
			}
		},
	})
	served := serving(srv, ln)
	clients := make([]net.Conn, 0, conns)
	defer func() {
		for _, nc := range clients {
			nc.Close()
		}
		srv.Close()
		<-served
	}()
	before := heap()
	for range conns {
		nc, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			tb.Fatal(err)
		}
		clients = append(clients, nc)
		io.WriteString(nc, get("/"))
		<-idle
	}
	return (heap() - before) / conns
}

// heap is what is in use when nothing is left to collect: pools give up what
// they have in the second round.
func heap() int {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

func BenchmarkRequest(b *testing.B) {
	for _, k := range kinds {
		b.Run(k.name, func(b *testing.B) {
			q := startRequester(b, k)
			b.ReportAllocs()
			for b.Loop() {
				q.ask(b)
			}
		})
	}
}

// BenchmarkRequestInterleaved alternates between the two servers, so that what
// else runs on the machine hits both, and reports the ratio of the best times.
func BenchmarkRequestInterleaved(b *testing.B) {
	const round = 200
	var qs [2]*requester
	best := [2]time.Duration{time.Hour, time.Hour}
	for i, k := range kinds {
		qs[i] = startRequester(b, k)
	}
	for b.Loop() {
		for i, q := range qs {
			start := time.Now()
			for range round {
				q.ask(b)
			}
			best[i] = min(best[i], time.Since(start)/round)
		}
	}
	b.ReportMetric(float64(best[0]), "plain-ns/req")
	b.ReportMetric(float64(best[1]), "grace-ns/req")
	b.ReportMetric(float64(best[1])/float64(best[0]), "ratio")
}

func BenchmarkDrainOfIdleConnections(b *testing.B) {
	const conns = 1000
	for b.Loop() {
		b.StopTimer()
		srv := &Server{Server: &http.Server{Handler: http.HandlerFunc(hello)}, IdleWait: time.Nanosecond}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		served := serving(srv, ln)
		for range conns {
			nc, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			go func() {
				io.WriteString(nc, get("/"))
				io.Copy(io.Discard, nc)
				nc.Close()
			}()
		}
		for srv.Stats().Idle < conns {
			runtime.Gosched()
		}
		b.StartTimer()
		if err := srv.Shutdown(b.Context()); err != nil {
			b.Fatal(err)
		}
		<-served
	}
}
