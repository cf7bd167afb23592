//go:build linux

package bench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-handover/handover/httpgrace"
)

// BenchmarkThroughput compares how many requests a second wrk gets answered by
// bare net/http and by httpgrace, in two processes that share a CPU and are
// busy one after the other; wrk has another CPU. Each iteration measures both.
func BenchmarkThroughput(b *testing.B) {
	wrk, err := exec.LookPath("wrk")
	if err != nil {
		b.Skip("wrk is not installed: the Debian package wrk")
	}
	bare, wrapped := newTarget(b, wrk, "bare"), newTarget(b, wrk, "wrapped")
	p := progress{b: b}
	for b.Loop() {
		inAnyOrder(bare.measure, wrapped.measure)
		p.report()
	}
	b.ReportMetric(bare.median(), "bare-rps")
	b.ReportMetric(wrapped.median(), "wrapped-rps")
	b.ReportMetric(wrapped.median()/bare.median(), "ratio")
	b.ReportMetric(0, "ns/op")
}

// target is a server process, and the rates at which it has answered.
type target struct {
	b     *testing.B
	wrk   string
	url   string
	rates []float64
}

func newTarget(b *testing.B, wrk, kind string) *target {
	b.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	c := launch(b, "http", pinned(0, exe, kind))
	return &target{b: b, wrk: wrk, url: "http://" + strings.TrimSpace(c.line(b)) + "/"}
}

var rate = regexp.MustCompile(`(?m)^Requests/sec: +([0-9.]+)$`)

// measure lets wrk ask for a second.
func (t *target) measure() {
	t.b.Helper()
	out, err := pinned(1, t.wrk, "-t1", "-c16", "-d1s", t.url).CombinedOutput()
	m := rate.FindSubmatch(out)
	if err != nil || m == nil || strings.Contains(string(out), "Socket errors") || strings.Contains(string(out), "Non-2xx") {
		t.b.Fatalf("%s: %v\n%s", t.wrk, err, out)
	}
	r, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.b.Fatal(err)
	}
	t.rates = append(t.rates, r)
}

func (t *target) median() float64 {
	return slices.Sorted(slices.Values(t.rates))[len(t.rates)/2]
}

// pinned is a command on one CPU alone, where there are several.
func pinned(cpu int, path string, args ...string) *exec.Cmd {
	if runtime.NumCPU() < 2 {
		return exec.Command(path, args...)
	}
	return exec.Command("taskset", append([]string{"-c", strconv.Itoa(cpu), path}, args...)...)
}

// serveHTTP answers GET / until its standard input ends. It prints its address.
func serveHTTP(args []string) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	hs := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello\n") // the client's loss
	})}
	serve := hs.Serve
	if args[0] == "wrapped" {
		serve = (&httpgrace.Server{Server: hs}).Serve
	}
	served := make(chan error, 1)
	go func() { served <- serve(ln) }()
	fmt.Println(ln.Addr())
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		ended <- err
	}()
	select {
	case err := <-served:
		return errors.Join(errors.New("it stopped serving"), err)
	case err := <-ended:
		return err
	}
}
