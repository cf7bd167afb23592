//go:build linux

package handover

import (
	"crypto/tls"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-handover/handover/httpgrace"
)

// TestH2specFindsNoDifference: the wrapped server passes and fails the same
// cases as the bare one. Some of them depend on who is faster, so a case is a
// difference only if it is one in each of three runs.
func TestH2specFindsNoDifference(t *testing.T) {
	t.Parallel()
	path := installed(t, "h2spec", "make bin/h2spec")
	for name, flags := range map[string][]string{"in the clear": nil, "TLS": {"--tls", "--insecure"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bare, wrapped := serveBoth(t, len(flags) > 0)
			var difference []string
			for n := range 3 {
				// Both at once: most of the time h2spec waits.
				b, w := h2spec(t, path, bare, flags), h2spec(t, path, wrapped, flags)
				failed := b()
				found := differing(failed, w())
				if n > 0 {
					found = slices.DeleteFunc(found, func(c string) bool { return !slices.Contains(difference, c) })
				}
				if difference = found; len(difference) == 0 {
					t.Logf("run %d: %d cases, %d failed by both servers", n+1, len(failed), count(failed))
					return
				}
			}
			t.Errorf("bare and wrapped server differ in:\n%s", strings.Join(difference, "\n"))
		})
	}
}

// serveBoth starts net/http and httpgrace with the same configuration, and
// returns their ports.
func serveBoth(t *testing.T, secure bool) (bare, wrapped string) {
	t.Helper()
	newServer := func() *http.Server {
		s := &http.Server{
			Protocols: new(http.Protocols),
			TLSConfig: &tls.Config{Certificates: certificates()},
			ErrorLog:  log.New(io.Discard, "", 0), // h2spec provokes what it can
		}
		s.Protocols.SetHTTP1(true)
		s.Protocols.SetHTTP2(true)
		s.Protocols.SetUnencryptedHTTP2(true)
		// All of the request first: else the answer is faster than some errors.
		s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err == nil {
				_, _ = io.WriteString(w, "hello\n")
			}
		})
		return s
	}
	b, w := newServer(), &httpgrace.Server{Server: newServer()}
	ports := make([]string, 2)
	for i, s := range []interface {
		Serve(net.Listener) error
		ServeTLS(ln net.Listener, certFile, keyFile string) error
		Close() error
	}{b, w} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() {
			if secure {
				served <- s.ServeTLS(ln, "", "")
			} else {
				served <- s.Serve(ln)
			}
		}()
		t.Cleanup(func() {
			_ = s.Close()
			<-served
		})
		ports[i] = fmt.Sprint(ln.Addr().(*net.TCPAddr).Port)
	}
	return ports[0], ports[1]
}

// h2spec begins to run all cases against the server on a port of this host. The
// function that it returns waits for the end, and says of each whether it has
// failed.
func h2spec(t *testing.T, path, port string, flags []string) func() map[string]bool {
	t.Helper()
	report := filepath.Join(t.TempDir(), "report")
	p := start(t, nil, path, append([]string{"--strict", "--port", port, "--junit-report", report}, flags...)...)
	return func() map[string]bool {
		t.Helper()
		p.wait()
		failed := readReport(t, report)
		if n := len(failed); n < 100 || count(failed) > n/2 {
			t.Fatalf("h2spec has run %d cases, of which %d have failed:\n%s", n, count(failed), p.out.tail())
		}
		return failed
	}
}

// readReport reads JUnit's XML.
func readReport(t *testing.T, path string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var suites struct {
		Suites []struct {
			Name  string `xml:"name,attr"`
			Cases []struct {
				Name    string    `xml:"classname,attr"`
				Failure *struct{} `xml:"failure"`
				Error   *struct{} `xml:"error"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(text, &suites); err != nil {
		t.Fatalf("the report of h2spec: %v", err)
	}
	failed := make(map[string]bool)
	for _, s := range suites.Suites {
		for _, c := range s.Cases {
			failed[s.Name+": "+c.Name] = c.Failure != nil || c.Error != nil
		}
	}
	return failed
}

func count(failed map[string]bool) (n int) {
	for _, f := range failed {
		if f {
			n++
		}
	}
	return n
}

// differing lists the cases that only one of the two has failed, or was asked.
func differing(bare, wrapped map[string]bool) (cases []string) {
	for c, failed := range bare {
		if f, ok := wrapped[c]; !ok || f != failed {
			cases = append(cases, fmt.Sprintf("%s (bare failed: %v)", c, failed))
		}
	}
	for c := range wrapped {
		if _, ok := bare[c]; !ok {
			cases = append(cases, c+" (not run against the bare one)")
		}
	}
	slices.Sort(cases)
	return cases
}
