//go:build linux

package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
)

// TestRealBrowserLosesNothing: Chromium has the demo's page open, which fetches
// and keeps two WebSockets, and each generation answers it. Over TLS its
// fetches are HTTP/2.
//
// Chromium hides a loss if it can: what fails on a kept connection before the
// response it sends again, POST too. Its network log tells.
func TestRealBrowserLosesNothing(t *testing.T) {
	for socket, lost := range map[string]func(*networkLog, counts) error{"http-0": lostByHTTP1, "tls": lostByHTTP2} {
		t.Run(socket, func(t *testing.T) {
			s := proctest.Start(t, proctest.Demo(t, "v1"), append(quick, "-listen", "127.0.0.1:0", "-tls", "127.0.0.1:0")...)
			p := openPage(t, s.Target(socket)+"/page")
			p.await("the first generation", func(c counts) bool { return c.Generations[1] > 0 && c.Posted > 0 && c.Echoed > 0 })
			generation := 1
			upgrades(s, rounds(), demos(t), nil, func() {
				generation++
				p.await(fmt.Sprintf("generation %d", generation), func(c counts) bool { return c.Generations[generation] > 0 })
			})
			c, log := p.end()
			t.Logf("%+v", c)
			if err := lost(log, c); err != nil {
				t.Error(err)
			}
			c.checkWebSockets(t)
		})
	}
}

// lostByHTTP1: no fetch has failed, and none was sent a second time.
func lostByHTTP1(log *networkLog, c counts) error {
	sent := len(log.events("HTTP_TRANSACTION_SEND_REQUEST_HEADERS"))
	again := len(log.events("HTTP_TRANSACTION_RESTART_AFTER_ERROR"))
	switch {
	case len(c.Wrong) > 0 || again > 0:
		return fmt.Errorf("%d requests lost, %d sent again", len(c.Wrong), again)
	case sent < c.Got+c.Posted:
		return fmt.Errorf("the network log has %d requests, want %d", sent, c.Got+c.Posted)
	}
	return nil
}

// lostByHTTP2: every stream that was opened was answered. GOAWAY can arrive
// when Chromium has chosen the connection for a request and not sent a byte of
// it yet. Mostly it chooses another one, but if other streams are open it fails
// the request, with ERR_FAILED: no server can help that, because none has heard
// of it.
func lostByHTTP2(log *networkLog, c counts) error {
	opened, answered := len(log.events("HTTP2_SESSION_SEND_HEADERS")), len(log.events("HTTP2_SESSION_RECV_HEADERS"))
	unsent := log.unsent()
	switch {
	case opened != answered:
		return fmt.Errorf("%d of %d streams were not answered", opened-answered, opened)
	case len(c.Wrong) != unsent:
		return fmt.Errorf("%d requests lost, of which Chromium has not sent %d", len(c.Wrong), unsent)
	case opened < c.Got+c.Posted:
		return fmt.Errorf("the network log has %d streams, want %d", opened, c.Got+c.Posted)
	}
	return nil
}

// counts is what the page reports.
type counts struct {
	Got, Posted, Echoed int
	Generations, Closes map[int]int
	Wrong               []string
	Ended               bool
}

// checkWebSockets wants none that ended otherwise than by the page's wish (1000)
// or because its server went away (1001).
func (c counts) checkWebSockets(t *testing.T) {
	t.Helper()
	for code, n := range c.Closes {
		if code != 1000 && code != 1001 {
			t.Errorf("%d WebSockets closed with code %d", n, code)
		}
	}
	if c.Closes[1001] < rounds() {
		t.Errorf("only %d WebSockets were asked to connect again, in %d upgrades", c.Closes[1001], rounds())
	}
}

// page is one that Chromium has open.
type page struct {
	t        *testing.T
	browser  *program
	commands *os.File // to the browser, each ends with a zero byte
	log      string   // of the network
	reports  chan counts
	stop     atomic.Bool
}

// openPage starts a browser that looks up no name and knows no host but this
// one, with a profile of its own.
func openPage(t *testing.T, address string) *page {
	t.Helper()
	path := installed(t, "chromium", "the Debian package chromium")
	p := &page{t: t, log: filepath.Join(t.TempDir(), "network"), reports: make(chan counts)}
	reports := httptest.NewServer(http.HandlerFunc(p.report))
	t.Cleanup(reports.Close)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.commands = w
	t.Cleanup(func() { w.Close() })
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0) // for the answers to commands
	if err != nil {
		t.Fatal(err)
	}
	p.browser = start(t, []*os.File{r, null}, path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--ignore-certificate-errors",
		"--user-data-dir="+t.TempDir(), "--log-net-log="+p.log, "--remote-debugging-pipe",
		address+"?report="+url.QueryEscape(reports.URL))
	if err := errors.Join(r.Close(), null.Close()); err != nil {
		t.Fatal(err)
	}
	return p
}

// report hands a report to whoever waits for one. The answer is for the page.
func (p *page) report(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Access-Control-Allow-Origin", "*")
	var c counts
	if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if p.stop.Load() {
		_, _ = io.WriteString(w, "stop")
	}
	select {
	case p.reports <- c:
	case <-r.Context().Done():
	case <-p.t.Context().Done():
	}
}

// await returns the first report that is as it should be.
func (p *page) await(name string, is func(counts) bool) counts {
	p.t.Helper()
	limit := time.After(patience)
	var last counts
	for {
		select {
		case last = <-p.reports:
			if is(last) {
				return last
			}
		case <-p.browser.ended:
			p.t.Fatalf("Chromium has ended before %s: %+v", name, last)
		case <-limit:
			p.t.Fatalf("not in %v: %s: %+v", patience, name, last)
		}
	}
}

// end lets the page finish what it has begun, and closes the browser. A signal
// would end it without the last part of its log.
func (p *page) end() (counts, *networkLog) {
	p.t.Helper()
	p.stop.Store(true)
	c := p.await("the last report", func(c counts) bool { return c.Ended })
	if _, err := io.WriteString(p.commands, `{"id":1,"method":"Browser.close"}`+"\x00"); err != nil {
		p.t.Fatal(err)
	}
	p.browser.wait()
	return c, readNetworkLog(p.t, p.log)
}

// networkLog is what --log-net-log has written: the numbers of all kinds of
// event and error in the first line, and in each other line an event.
type networkLog struct {
	t         *testing.T
	lines     []string
	Constants struct {
		LogEventTypes map[string]int `json:"logEventTypes"`
		NetError      map[string]int `json:"netError"`
	} `json:"constants"`
}

func readNetworkLog(t *testing.T, path string) *networkLog {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	l := &networkLog{t: t, lines: strings.Split(string(text), "\n")}
	if err := json.Unmarshal([]byte(strings.TrimSuffix(l.lines[0], ",")+"}"), l); err != nil {
		t.Fatalf("the network log: %v", err)
	}
	return l
}

// networkEvent is what is of interest here of an event.
type networkEvent struct {
	Source struct {
		ID int `json:"id"` // of the request, or of the connection
	} `json:"source"`
	Params struct {
		NetError int `json:"net_error"`
	} `json:"params"`
}

// events returns those of a kind.
func (l *networkLog) events(kind string) (events []networkEvent) {
	l.t.Helper()
	number, ok := l.Constants.LogEventTypes[kind]
	if !ok {
		l.t.Fatalf("the network log knows no %s", kind)
	}
	end := fmt.Sprintf(`"type":%d},`, number)
	for _, line := range l.lines {
		if !strings.HasSuffix(line, end) {
			continue
		}
		var e networkEvent
		if err := json.Unmarshal([]byte(strings.TrimSuffix(line, ",")), &e); err != nil {
			l.t.Fatalf("the network log: %v in %s", err, line)
		}
		events = append(events, e)
	}
	return events
}

// unsent counts the requests that have failed with ERR_FAILED before they were
// sent anywhere.
func (l *networkLog) unsent() (n int) {
	l.t.Helper()
	sent := make(map[int]bool)
	for _, e := range l.events("HTTP_TRANSACTION_SEND_REQUEST") {
		sent[e.Source.ID] = true
	}
	failed, ok := l.Constants.NetError["ERR_FAILED"]
	if !ok {
		l.t.Fatal("the network log knows no ERR_FAILED")
	}
	for _, e := range l.events("URL_REQUEST_START_JOB") {
		if e.Params.NetError == failed && !sent[e.Source.ID] {
			n++
		}
	}
	return n
}
