//go:build linux

package handover

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/go-handover/handover/internal/proctest"
)

// tally is what a client program says of its requests.
type tally struct {
	requests    int
	lost        int // without an answer, with a wrong one, or only with a second attempt
	connections int // 0: not known
	generations int // that have answered; unknown if the answers do not tell
}

const unknown = -1

// client puts the load of one program on a target, and returns what ends it.
type client func(t *testing.T, target string) (end func() tally)

// TestRealClientsLoseNothing: programs that nobody here has written send what
// they can to a server that is replaced again and again.
//
// What they hide: hey is built on Go's Transport, which sends a GET, but not
// hey's POST, again when a kept connection turns out to be closed. So does curl
// with everything; but curl -v says so, and that counts as lost here. wrk and
// h2load --h1 hide nothing. HTTP/2 of h2load has a test of its own.
func TestRealClientsLoseNothing(t *testing.T) {
	for _, test := range []struct {
		name   string
		socket string
		kept   bool // the one connection that this client has
		client client
	}{
		{"wrk GET", "http-0", false, wrk("GET")},
		{"wrk POST", "http-0", false, wrk("POST")},
		{"wrk GET over TLS", "tls", false, wrk("GET")},
		{"hey GET", "http-0", false, hey("-m", "GET")},
		{"hey GET without keep-alive", "http-0", false, hey("-m", "GET", "-disable-keepalive")},
		{"hey POST", "http-0", false, hey("-m", "POST")},
		{"hey POST without keep-alive", "http-0", false, hey("-m", "POST", "-disable-keepalive")},
		{"curl GET", "http-0", true, curl("/?n=", "")},
		{"curl POST", "http-0", true, curl("/echo?n=", "request of curl")},
		{"curl GET over TLS", "tls", false, curl("/?n=", "", "--http1.1")},
		{"curl GET by HTTP2", "tls", false, curl("/?n=", "", "--http2", "--parallel", "--parallel-max", "8")},
		{"h2load GET", "http-0", false, h2load},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := proctest.Start(t, proctest.Demo(t, "v1"), append(quick, "-listen", "127.0.0.1:0", "-tls", "127.0.0.1:0")...)
			end := test.client(t, s.Target(test.socket))
			upgrades(s, rounds(), demos(t), nil, nil)
			got := end()
			t.Logf("%+v", got)
			got.check(t, rounds())
			if test.kept && got.connections != 1 {
				t.Errorf("%d connections, want 1", got.connections)
			}
		})
	}
}

// check wants a load that ran across n upgrades and lost nothing.
func (got tally) check(t *testing.T, n int) {
	t.Helper()
	if got.lost > 0 {
		t.Errorf("%d of %d requests lost", got.lost, got.requests)
	}
	if got.requests < 10*n {
		t.Errorf("only %d requests in %d upgrades: the test showed little", got.requests, n)
	}
	// A client of HTTP/2 is left alone for a second when it was told to go, in
	// which other generations come and go.
	if got.generations != unknown && got.generations < n/2 {
		t.Errorf("%d generations have answered, in %d upgrades", got.generations, n)
	}
}

// wrk judges the answers by testdata/wrk.lua. It prints its report on SIGINT.
func wrk(method string) client {
	return func(t *testing.T, target string) func() tally {
		path := installed(t, "wrk", "the Debian package wrk")
		p := start(t, nil, path, "-t1", "-c16", "-d1h", "--timeout", "30s", "-s", "testdata/wrk.lua", target+"/", "--", method)
		return func() (got tally) {
			p.end(syscall.SIGINT)
			_, report, _ := strings.Cut(p.out.String(), "\nhandover ")
			if _, err := fmt.Sscanf(report, "requests=%d lost=%d generations=%d", &got.requests, &got.lost, &got.generations); err != nil {
				t.Fatalf("no report: %v", err)
			}
			return got
		}
	}
}

// hey has pauses, so that connections are idle at times. On SIGINT it prints
// "[200] N responses", and then "[N] the error" under a heading.
func hey(args ...string) client {
	line := regexp.MustCompile(`(?m)^ +\[(\d+)\]\t(?:(\d+) responses$)?`)
	return func(t *testing.T, target string) func() tally {
		path := installed(t, "hey", "the Debian package hey")
		url, args := target+"/", args
		if args[1] == "POST" {
			url, args = target+"/echo", append([]string{"-d", "request of hey"}, args...)
		}
		p := start(t, nil, path, append(args, "-c", "16", "-q", "100", "-z", "1h", url)...)
		return func() tally {
			p.end(syscall.SIGINT)
			got := tally{generations: unknown}
			for _, m := range line.FindAllStringSubmatch(p.out.String(), -1) {
				// A failed match is 0: an error has its number in the brackets.
				code, _ := strconv.Atoi(m[1])
				n, _ := strconv.Atoi(m[2])
				switch {
				case m[2] == "":
					got.requests += code
					got.lost += code
				case code != 200:
					got.lost += n
					fallthrough
				default:
					got.requests += n
				}
			}
			return got
		}
	}
}

// curl sends one request after the other in one process, with the connections
// that it has; the answers are on its standard output. A line of standard error
// says how each transfer ended. -v adds that a request is sent again because its
// connection was dead. Nothing is told of a transfer that SIGTERM cuts off.
func curl(path, body string, args ...string) client {
	const format = "%{stderr}handover %{exitcode} %{http_code} %{num_connects}\n"
	return func(t *testing.T, target string) func() tally {
		program := installed(t, "curl", "the Debian package curl")
		args := append([]string{"-q", "--silent", "--show-error", "--insecure", "--no-buffer", "--verbose", "--write-out", format}, args...)
		if body != "" {
			args = append(args, "--data-binary", body+"\n")
		}
		p := start(t, nil, program, append(args, target+path+"[1-100000000]")...)
		p.errors.says(t, "\nhandover ")
		return func() tally {
			p.end(syscall.SIGTERM)
			got := transfers(p.errors.String())
			wrong, generations := bodies(p.out.String(), body)
			got.lost += wrong
			got.generations = generations
			return got
		}
	}
}

// transfers reads curl's standard error.
func transfers(text string) (got tally) {
	for line := range strings.Lines(text) {
		var exit, status, connects int
		if n, _ := fmt.Sscanf(line, "handover %d %d %d\n", &exit, &status, &connects); n == 3 {
			got.requests++
			got.connections += connects
			if exit != 0 || status != 200 {
				got.lost++
			}
		} else if strings.HasPrefix(line, "*") && strings.Contains(line, "retrying") {
			got.lost++
		}
	}
	return got
}

// bodies counts the wrong lines of curl's standard output, of which each is to
// be what was posted, or tells a generation. The last one may be cut off.
func bodies(text, want string) (wrong, generations int) {
	identity := regexp.MustCompile(`^pid=\d+ generation=(\d+) version=v\d$`)
	seen := make(map[string]bool)
	lines := strings.Split(text, "\n")
	for _, line := range lines[:len(lines)-1] {
		m := identity.FindStringSubmatch(line)
		switch {
		case want != "" && line != want, want == "" && m == nil:
			wrong++
		case m != nil:
			seen[m[1]] = true
		}
	}
	if want != "" {
		return wrong, unknown
	}
	return wrong, len(seen)
}

// h2load speaks HTTP/1.1 here. Its log has a line for each request as soon as it
// has ended: when, status or -1, microseconds.
func h2load(t *testing.T, target string) func() tally {
	path := installed(t, "h2load", "the Debian package nghttp2-client")
	log := filepath.Join(t.TempDir(), "requests")
	p := start(t, nil, path, "--h1", "-c", "16", "-D", "3600", "--log-file", log, target+"/")
	return func() tally {
		p.end(syscall.SIGTERM)
		got := tally{generations: unknown}
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			got.requests++
			if fields := strings.Fields(line); len(fields) != 3 || fields[1] != "200" {
				got.lost++
			}
		}
		return got
	}
}
