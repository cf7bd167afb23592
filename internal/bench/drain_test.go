//go:build linux

package bench

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
)

// BenchmarkDrain tells how long a process with 1,000 idle connections takes from
// Done until it has ended, when all of them are handed over. Each iteration has
// a process of its own, so that its end can be waited for.
func BenchmarkDrain(b *testing.B) {
	const conns = 1000
	binary := proctest.Demo(b, "bench")
	var exit durations
	p := progress{b: b}
	for b.Loop() {
		s := proctest.Start(b, binary, "-probation", "20ms")
		address := s.Addr("http-0")
		idle := make([]*kept, conns)
		for i := range idle {
			idle[i] = keep(b, address)
		}
		old := s.PID()
		s.Upgrade()
		s.ExitCode()
		ended := time.Now()
		for _, c := range idle {
			if answer := c.ask(b); strings.Contains(answer, "generation=1") {
				b.Fatalf("the old process answers: %s", answer)
			}
			c.Close()
		}
		done := s.Wait(proctest.Changed(old, "draining"))
		exit = append(exit, ended.Sub(timeOf(b, done)))
		s.Stop()
		p.report()
	}
	b.ReportMetric(exit.quantile(0.5), "exit-ms")
	b.ReportMetric(exit.quantile(0.9), "exit-q90-ms")
	b.ReportMetric(0, "ns/op")
}

// kept is a connection that is never made again.
type kept struct {
	net.Conn
	answers *bufio.Reader
}

// keep makes a connection that has been used.
func keep(b *testing.B, address string) *kept {
	b.Helper()
	nc, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		b.Fatal(err)
	}
	c := &kept{nc, bufio.NewReader(nc)}
	c.ask(b)
	return c
}

func (c *kept) ask(b *testing.B) string {
	b.Helper()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		b.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
		b.Fatal(err)
	}
	resp, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.Close {
		b.Fatalf("closes: %v, %v", resp.Close, err)
	}
	return string(body)
}

func timeOf(b *testing.B, e proctest.Event) time.Time {
	b.Helper()
	text, _ := e.Fields["time"].(string)
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		b.Fatal(err)
	}
	return t
}
