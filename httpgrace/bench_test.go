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

func TestConnectionCostsLittleMemory(t *testing.T) {
	const limit = 256
	size := unsafe.Sizeof(tcpConn{})
	t.Logf("%d bytes", size)
	if size > limit {
		t.Errorf("%d bytes, want at most %d", size, limit)
	}
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
