//go:build linux

package handover

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/go-handover/handover/internal/proctest"
	"github.com/go-handover/handover/internal/proctest/link"
	"github.com/go-handover/handover/internal/proctest/load"
)

// clientsOf is how many clients of each mode there are. None of them retries.
const clientsOf = 32

// mode is a way in which clients use a server.
type mode struct {
	kind load.Kind
	tls  bool

	// hold is how long requests take that are meant to. Zero: 200 ms.
	hold time.Duration

	// think is the longest pause between two requests. Zero: 50 ms. Two cores
	// can make some hundred TLS handshakes a second, and what net/http gives a
	// client of HTTP/2 for its first frames is 2 s.
	think time.Duration

	// leaves: the clients close connections themselves.
	leaves bool
}

func (m mode) String() string {
	if m.tls {
		return string(m.kind) + ", TLS"
	}
	return string(m.kind)
}

// kept reports that the server keeps the connections of this mode, because it
// can hand them over: they are HTTP/1 in the clear.
func (m mode) kept() bool {
	one := !slices.Contains([]load.Kind{load.H2, load.H2Transport, load.WS}, m.kind)
	return one && !m.tls && !m.leaves
}

// asks reports that the clients of this mode learn which process answers them.
// The others would say nothing of the upgrades that they have seen.
func (m mode) asks() bool {
	return slices.Contains([]load.Kind{
		load.New, load.Late, load.Get, load.Head, load.HTTP10, load.UpgradeH2C, load.Pipeline, load.Chaos, load.H2, load.H2Transport,
	}, m.kind)
}

// flags of loadgen.
func (m mode) flags(s *proctest.Server) []string {
	socket := "http-0"
	if m.tls {
		socket = "tls"
	}
	return []string{
		"-target", s.Target(socket), "-clients", fmt.Sprintf("%s=%d", m.kind, clientsOf),
		"-hold", cmp.Or(m.hold, 200*time.Millisecond).String(),
		"-think", cmp.Or(m.think, 50*time.Millisecond).String(),
		"-duration", "1h", "-timeout", "30s", // slow is not lost
	}
}

// group is a number of modes that share a server. All at once would leave two
// cores no idle moment, and an upgrade is as quick as its start.
type group struct {
	name  string
	modes []mode
}

// Pauses and requests that are longer than usual.
const (
	calm = 200 * time.Millisecond
	long = 5 * time.Second // many upgrades
)

var groups = []group{
	{name: "small", modes: []mode{
		{kind: load.Get},
		{kind: load.Post},
		{kind: load.Transport},
		{kind: load.Head},
		{kind: load.NotModified},
		{kind: load.HTTP10, leaves: true},
		{kind: load.UpgradeH2C},
	}},
	{name: "parts", modes: []mode{
		{kind: load.Slow},
		{kind: load.Stream},
		{kind: load.Bytewise},
		{kind: load.Continue},
		{kind: load.Trailers},
		{kind: load.Pipeline},
		{kind: load.Chaos},
	}},
	{name: "long", modes: []mode{
		{kind: load.New, leaves: true},
		{kind: load.Upload, hold: long, think: long},
		{kind: load.Upload, hold: long, think: long, tls: true},
		{kind: load.Download, hold: long, think: long},
		{kind: load.Download, hold: long, think: long, tls: true},
	}},
	// Apart from all others, because Shutdown waits for an event stream until
	// its limit, and cuts nobody off as long as it waits.
	{name: "events", modes: []mode{
		{kind: load.Late, leaves: true},
		{kind: load.SSE},
		{kind: load.SSE, tls: true},
	}},
	{name: "TLS", modes: []mode{
		{kind: load.New, think: calm, tls: true, leaves: true},
		{kind: load.Late, think: calm, tls: true, leaves: true},
		{kind: load.Get, tls: true},
		{kind: load.Post, tls: true},
		{kind: load.Transport, tls: true},
		{kind: load.Slow, tls: true},
		{kind: load.Stream, tls: true},
		{kind: load.Pipeline, tls: true},
		{kind: load.Bytewise, tls: true},
	}},
	{name: "frames", modes: []mode{
		{kind: load.H2, think: calm},
		{kind: load.H2, think: calm, tls: true},
		{kind: load.H2Transport, think: calm},
		{kind: load.H2Transport, think: calm, tls: true},
		{kind: load.WS, think: calm},
		{kind: load.WS, think: calm, tls: true},
	}},
}

// network is where the servers and the clients are.
type network struct {
	name             string
	servers, clients proctest.Place
	addr             string // of the servers
}

// contender is a server that is upgraded so many times.
type contender struct {
	path     string
	upgrades int
}

// matrix is what TestModesLoseNothing goes through.
type matrix struct {
	shutdown, ours contender
	clients        string // the binary
}

func newMatrix(t *testing.T) matrix {
	t.Helper()
	x := matrix{
		shutdown: contender{proctest.Plain(t, "v1"), 5}, // what is lost in each shows in a few
		ours:     contender{proctest.Demo(t, "v1"), rounds()},
		clients:  proctest.Build(t, proctest.LoadgenPackage),
	}
	if os.Getenv("HANDOVER_SOAK") != "" {
		x.shutdown.upgrades = rounds()
	}
	return x
}

// row is what became of the clients of a mode. An absent report is that of a
// test that was not to run, or has failed.
type row struct {
	mode           mode
	network        string
	shutdown, ours load.Result
}

// TestModesLoseNothing puts clients of every mode on two servers in turn: one
// that drains by http.Server.Shutdown, the yardstick, and ours, which loses no
// request, and of what it can hand over no connection.
func TestModesLoseNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	x := newMatrix(t)
	var near, far []row
	t.Run("on", func(t *testing.T) { // until both have ended
		t.Run("loopback", func(t *testing.T) {
			t.Parallel()
			x.run(t, network{name: "loopback", addr: "127.0.0.1"}, &near)
		})
		t.Run("10 ms", func(t *testing.T) {
			t.Parallel()
			l := link.New(t, link.DefaultDelay)
			x.run(t, network{"10 ms", l.Servers, l.Clients, l.Servers.Addr.String()}, &far)
		})
	})
	rows := slices.Concat(near, far)
	t.Logf("\n%s", x.table(rows))
	if requests, lost := yardstick(rows); requests > 0 && lost == 0 {
		t.Error("Shutdown has lost nothing: the test shows nothing")
	}
}

func (x matrix) run(t *testing.T, n network, rows *[]row) {
	for _, g := range groups {
		var shutdown, ours map[mode]load.Report
		t.Run(g.name+"/Shutdown", func(t *testing.T) {
			shutdown = x.shutdown.upgradeUnder(t, n, x.clients, g)
			for m, r := range shutdown {
				worked(t, m, r)
			}
		})
		t.Run(g.name+"/ours", func(t *testing.T) {
			ours = x.ours.upgradeUnder(t, n, x.clients, g)
			for m, r := range ours {
				worked(t, m, r)
				flawless(t, m, r)
			}
		})
		for _, m := range g.modes {
			*rows = append(*rows, row{m, n.name, shutdown[m].Total, ours[m].Total})
		}
	}
}

// upgradeUnder upgrades a server while clients of all modes are at work, each
// time when every mode has been answered by the new process, and returns what
// became of them.
func (c contender) upgradeUnder(t *testing.T, n network, clients string, g group) map[mode]load.Report {
	t.Helper()
	args := append(slices.Clone(quick), "-listen", n.addr+":0", "-tls", n.addr+":0", "-drain-timeout", "30s")
	s := proctest.StartIn(t, n.servers, c.path, args...)
	working := make(map[mode]*proctest.Clients)
	for _, m := range g.modes {
		working[m] = proctest.StartClients(t, n.clients, clients, m.flags(s)...)
	}
	for _, w := range working {
		w.Busy()
	}
	for i := range c.upgrades {
		for _, w := range working {
			w.Mark()
		}
		s.Upgrade()
		for m, w := range working {
			if m.asks() {
				w.AnsweredBy(i + 2)
			}
		}
	}
	for _, w := range working {
		w.Finish()
	}
	reports := make(map[mode]load.Report)
	for m, w := range working {
		reports[m] = w.Report()
	}
	return reports
}

// worked asserts that a mode was used across the upgrades.
func worked(t *testing.T, m mode, r load.Report) {
	t.Helper()
	if r.Total.Around.N == 0 {
		t.Errorf("%s: no request was answered around an upgrade: the test shows nothing", m)
	}
}

// flawless asserts that the clients of a mode have noticed nothing.
func flawless(t *testing.T, m mode, r load.Report) {
	t.Helper()
	if lost := r.Total.Failed + r.Total.Cut; lost > 0 {
		t.Errorf("%s: %d of %d requests lost\n%s", m, lost, r.Total.Requests, r.Total.Lost())
	}
	if m.kept() && r.Total.Dials != r.Total.Clients {
		t.Errorf("%s: %d clients have opened %d connections", m, r.Total.Clients, r.Total.Dials)
	}
}

// yardstick is what all clients have lost with Shutdown.
func yardstick(rows []row) (requests, lost int) {
	for _, r := range rows {
		requests += r.shutdown.Requests
		lost += r.shutdown.Failed
	}
	return requests, lost
}

// table has a line for each row that was measured.
func (x matrix) table(rows []row) string {
	var b, notes strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\t\tShutdown, %d upgrades\t\t\tours, %d upgrades\t\t\tp99 of ours\t\t\t\n", x.shutdown.upgrades, x.ours.upgrades)
	fmt.Fprintln(w, "mode\tnetwork\trequests\tfailed\treconnects\trequests\tfailed\treconnects\tsteady\taround\tratio\t")
	for _, r := range rows {
		if r.shutdown.Requests+r.ours.Requests == 0 {
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t\n", r.mode, r.network, cells(r.mode, r.shutdown), cells(r.mode, r.ours), p99(r.ours))
		if r.ours.Told+r.ours.Unsent > 0 {
			fmt.Fprintf(&notes, "%s, %s, ours: %d requests were sent again, as the server asked; %d were refused by Go's own client\n",
				r.mode, r.network, r.ours.Told, r.ours.Unsent)
		}
	}
	_ = w.Flush() // a strings.Builder does not fail
	return b.String() + notes.String()
}

// cells are the requests, the failed ones and the reconnects.
func cells(m mode, r load.Result) string {
	reconnects := strconv.Itoa(r.Dials - r.Clients)
	if m.leaves {
		reconnects = "-"
	}
	return fmt.Sprintf("%d\t%d\t%s", r.Requests, r.Failed+r.Cut, reconnects)
}

// p99 is that of the steady state, that around an upgrade, and their ratio.
func p99(r load.Result) string {
	if r.Steady.N == 0 || r.Around.N == 0 {
		return "-\t-\t-"
	}
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1000) }
	return fmt.Sprintf("%s\t%s\t%.2f", ms(r.Steady.P99), ms(r.Around.P99), r.Around.P99.Seconds()/r.Steady.P99.Seconds())
}
