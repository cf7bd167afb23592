package load

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/site"
)

// rightServers returns targets that speak all protocols and lose nothing.
func rightServers(t *testing.T) map[string]string {
	t.Helper()
	unix, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := func() *httptest.Server {
		s := httptest.NewUnstartedServer(site.Handler(3, "v1"))
		s.Config.Protocols = site.Protocols()
		t.Cleanup(s.Close)
		return s
	}
	plain, secure, onUnix := server(), server(), server()
	plain.Start()
	secure.EnableHTTP2 = true
	secure.StartTLS()
	onUnix.Listener.Close()
	onUnix.Listener = unix
	onUnix.Start()
	return map[string]string{"tcp": plain.URL, "tls": secure.URL, "unix": "unix:" + unix.Addr().String()}
}

func TestNothingFailsAgainstARightServer(t *testing.T) {
	t.Parallel()
	for name, target := range rightServers(t) {
		for _, kind := range Kinds {
			t.Run(name+"/"+string(kind), func(t *testing.T) {
				t.Parallel()
				l := start(t, Config{
					Target: target, Clients: map[Kind]int{kind: 2}, Requests: 41,
					Hold: 30 * time.Millisecond, Think: time.Millisecond,
				})
				l.Mark(time.Now())
				r := finish(t, l)
				if r.Total.Requests != 41 || r.Total.Failed != 0 || r.Total.Cut != 0 || r.Total.Told != 0 {
					t.Error(r)
				}
				if got := r.Total.Around.N; got == 0 || got+r.Total.Steady.N != 41 {
					t.Errorf("latency of %d around the mark and %d others", got, r.Total.Steady.N)
				}
				if least, most := dials(kind); r.Total.Dials < least || r.Total.Dials > most {
					t.Errorf("%d connections, want %d to %d", r.Total.Dials, least, most)
				}
				if asksWho(kind) && (len(r.Processes) != 1 || r.Processes[0].PID != os.Getpid() ||
					r.Processes[0].Generation != 3 || r.Processes[0].Version != "v1") {
					t.Errorf("processes %+v", r.Processes)
				}
			})
		}
	}
}

// dials is how many connections 2 clients make of the kind for 41 requests.
func dials(kind Kind) (least, most int) {
	switch kind {
	case New, Late:
		return 41, 41
	case HTTP10: // which of the two makes the last request?
		return 21, 22
	case H2Transport: // it dials for each request until it knows that it may share
		return 1, 2 * 4
	default:
		return 1, 2 // the requests of one may be over before the other starts
	}
}

// asksWho reports that clients of the kind ask for GET /.
func asksWho(kind Kind) bool {
	switch kind {
	case New, Late, Get, Head, HTTP10, UpgradeH2C, Pipeline, Chaos, H2, H2Transport:
		return true
	default:
		return false
	}
}

func TestEachKindIsDescribed(t *testing.T) {
	seen := make(map[Kind]bool)
	for _, k := range Kinds {
		if k.Does() == "" || seen[k] || !k.Known() {
			t.Errorf("%s: %q", k, k.Does())
		}
		seen[k] = true
	}
	if Kind("nothing").Known() {
		t.Error("a kind that does not exist is known")
	}
}

// A nil Config.Clients means what it has always meant.
func TestDefaultClients(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	r := finish(t, start(t, Config{Target: s.URL, Duration: time.Millisecond}))
	want := map[Kind]int{New: 4, Late: 4, Get: 16, Post: 16, Slow: 4, Stream: 4}
	if len(r.Kinds) != len(want) {
		t.Error(r)
	}
	for _, k := range r.Kinds {
		if k.Clients != want[k.Kind] {
			t.Errorf("%d clients of kind %s, want %d", k.Clients, k.Kind, want[k.Kind])
		}
	}
}
