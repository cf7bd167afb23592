//go:build linux

package bench

import (
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-handover/handover/internal/proctest"
	"github.com/go-handover/handover/internal/wire"
)

// BenchmarkTrigger compares three ways to have the same process upgrade itself,
// by the time until its successor's first answer: SIGUSR1; a request on the
// control socket, as a client makes it that runs already; and "upgradectl
// upgrade" from its exec on. Each iteration measures all of them.
func BenchmarkTrigger(b *testing.B) {
	dir := tempDir(b, false)
	socket := filepath.Join(dir, "control")
	s := newServer(b, dir, 1, "-control", socket)
	tool := proctest.Upgradectl(b)
	var bySignal, byRequest, byTool durations
	p := progress{b: b}
	for b.Loop() {
		inAnyOrder(
			func() { bySignal = append(bySignal, s.upgrade()) },
			func() {
				var over <-chan error
				byRequest = append(byRequest, s.upgradeBy(func() { over = request(b, socket) }))
				if err := <-over; err != nil {
					b.Fatal(err)
				}
			},
			func() {
				cmd := exec.Command(tool, "-socket", socket, "upgrade")
				said := new(strings.Builder)
				cmd.Stdout, cmd.Stderr = said, said
				byTool = append(byTool, s.upgradeBy(func() {
					if err := cmd.Start(); err != nil {
						b.Fatal(err)
					}
				}))
				const rolledBack = 3
				if err := cmd.Wait(); cmd.ProcessState.ExitCode() != rolledBack {
					b.Fatalf("upgradectl: %v\n%s", err, said)
				}
			},
		)
		p.report()
	}
	signal := bySignal.quantile(0.5)
	b.ReportMetric(signal, "signal-ms")
	b.ReportMetric(byRequest.quantile(0.5), "request-ms")
	b.ReportMetric(byTool.quantile(0.5), "upgradectl-ms")
	b.ReportMetric(byRequest.quantile(0.5)-signal, "request-adds-ms")
	b.ReportMetric(byTool.quantile(0.5)-signal, "upgradectl-adds-ms")
	b.ReportMetric(0, "ns/op")
}

// request asks for an upgrade, and returns what tells when it has ended. The
// client package is internal to the commands, which are another module.
func request(b *testing.B, socket string) <-chan error {
	b.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	conn := wire.NewConn(c.(*net.UnixConn))
	if err := conn.Send(wire.Request{Version: wire.Version, Verb: wire.VerbUpgrade}); err != nil {
		b.Fatal(errors.Join(err, c.Close()))
	}
	over := make(chan error, 1)
	go func() { over <- errors.Join(answered(conn), c.Close()) }()
	return over
}

// answered returns when the answer is there, which must be that the successor
// was killed.
func answered(conn *wire.Conn) error {
	for {
		m, _, err := conn.Receive()
		if err != nil {
			return err
		}
		if a, is := m.(wire.Answer); is {
			if a.Result != wire.ResultRolledBack {
				return errors.New(a.Result + ": " + a.Text)
			}
			return nil
		}
	}
}
