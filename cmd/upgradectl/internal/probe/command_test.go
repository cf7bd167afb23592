package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest/load"
	"github.com/go-handover/handover/internal/site"
)

// asProbe makes the test binary the command itself.
const asProbe = "PROBE_TEST_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asProbe) == "" {
		os.Exit(m.Run())
	}
	cmd := Command()
	cmd.SetArgs(os.Args[1:])
	err := cmd.ExecuteContext(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
	}
	os.Exit(exitCode(err))
}

func exitCode(err error) int {
	var e *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.ExitCode()
	}
	return 99 // no command line leads here
}

// execute runs the command in this process.
func execute(stdin io.Reader, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd := Command()
	cmd.SetArgs(args)
	cmd.SetIn(stdin)
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	err = cmd.ExecuteContext(context.Background())
	return out.String(), errs.String(), err
}

// reported runs the command for a short time and returns what -json prints.
func reported(t *testing.T, code int, args ...string) report {
	t.Helper()
	out, _, err := execute(nil, append([]string{"--json", "--duration", "200ms", "--rate", "100", "--new", "1", "--keep", "1"}, args...)...)
	if exitCode(err) != code {
		t.Fatalf("exit code %d (%v), want %d\n%s", exitCode(err), err, code, out)
	}
	var r report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	if r.Total.Requests == 0 {
		t.Fatal("no request was made: the test shows nothing")
	}
	return r
}

// serve starts a server that speaks whatever net/http does.
func serve(t *testing.T, h http.Handler, tls bool) (url string) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = site.Protocols()
	s.EnableHTTP2 = true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	if tls {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s.URL
}

func TestUsageErrors(t *testing.T) {
	url := serve(t, site.Handler(1, "v1"), false)
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, "no URL"},
		{[]string{"127.0.0.1:80"}, "127.0.0.1:80"},
		{[]string{"ftp://host/"}, "want http://HOST"},
		{[]string{"http:///path"}, "want http://HOST"},
		{[]string{"http://u:secret@host/"}, "xxxxx"},
		{[]string{"unix:"}, "unix:PATH"},
		{[]string{"POST"}, "want http://HOST"},
		{[]string{"--unix", "/a", "unix:/b"}, "another socket"},
		{[]string{url, "--bogus"}, "bogus"},
		{[]string{url, "--rate", "-1"}, "-rate"},
		{[]string{url, "--rate", "NaN"}, "-rate"},
		{[]string{url, "--rate", "x"}, "rate"},
		{[]string{url, "--duration", "-1s"}, "-duration"},
		{[]string{url, "--timeout", "0"}, "-timeout"},
		{[]string{url, "--think", "-1s"}, "-think"},
		{[]string{url, "--new", "0", "--keep", "0"}, "no clients"},
		{[]string{url, "--new", "-1"}, "no clients"},
		{[]string{url, "--conns", "0"}, "-conns"},
		{[]string{url, "--conns", "4", "--new", "1"}, "excludes"},
		{[]string{url, "--expect", "100"}, "-expect"},
		{[]string{url, "--method", "GE T"}, "method"},
		{[]string{url, "--method", "CONNECT"}, "method"},
		{[]string{url, "--header", "no colon"}, "-header"},
		{[]string{url, "--header", "A: b\r\nC: d"}, "-header"},
		{[]string{url, "--header", "content-length: 3"}, "Content-Length"},
		{[]string{url, "--body", "@/nowhere/at/all"}, "-body"},
		{[]string{url, "--plot", "picture.png"}, ".svg"},
		{[]string{url, "--plot", "/nowhere/at/all.svg"}, "-plot"},
	} {
		out, _, err := execute(nil, test.args...)
		if exitCode(err) != codeUsage || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") || out != "" {
			t.Errorf("%q: %v (exit code %d), want %q; it prints %q", test.args, err, exitCode(err), test.want, out)
		}
	}
}

func TestServerThatIsNotThere(t *testing.T) {
	plain := serve(t, site.Handler(1, "v1"), false)
	secure := serve(t, site.Handler(1, "v1"), true)
	dir := t.TempDir()
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"nobody listens":      {[]string{"unix:" + dir + "/gone"}, "no such file"},
		"one of two":          {[]string{plain, "unix:" + dir + "/gone"}, "no such file"},
		"unknown certificate": {[]string{secure}, "-insecure"},
		"no TLS":              {[]string{strings.Replace(plain, "http:", "https:", 1)}, "does not answer"},
		"no control socket":   {[]string{plain, "--socket", dir + "/gone"}, "control socket"},
	} {
		if _, _, err := execute(nil, test.args...); exitCode(err) != codeUnreachable || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v (exit code %d), want %q", name, err, exitCode(err), test.want)
		}
	}
}

func TestEachRowIsItsOwn(t *testing.T) {
	url := serve(t, site.Handler(3, "v1"), false)
	r := reported(t, 0, url+"/", "POST", url+"/echo", url+"/slow?ms=1", "--body", "text")
	var rows []string
	for _, row := range r.Rows {
		rows = append(rows, fmt.Sprint(row.Method, " ", strings.TrimPrefix(row.URL, url), " ", row.Kind))
		if row.Requests == 0 || row.Statuses[200] != row.Requests || row.Steady.N+row.Around.N != row.Requests || row.Steady.Max < row.Steady.P50 {
			t.Errorf("%+v", row)
		}
	}
	want := []string{"GET / new", "GET / keep", "POST /echo new", "POST /echo keep", "GET /slow?ms=1 new", "GET /slow?ms=1 keep"}
	if !slices.Equal(rows, want) {
		t.Errorf("rows %q, want %q", rows, want)
	}
	if len(r.Processes) != 1 || r.Processes[0].PID != os.Getpid() || r.Total.Clients != 6 {
		t.Errorf("%+v", r)
	}
}

func TestConnsAreSplit(t *testing.T) {
	url := serve(t, site.Handler(1, "v1"), false)
	out, _, err := execute(nil, "--json", "--duration", "50ms", "--conns", "10", url)
	var r report
	if err := errors.Join(err, json.Unmarshal([]byte(out), &r)); err != nil {
		t.Fatal(err)
	}
	if r.Rows[0].Clients != 2 || r.Rows[1].Clients != 8 {
		t.Errorf("%+v", r.Rows)
	}
}

// An error status is an answer: whoever minds says so.
func TestStatusIsReported(t *testing.T) {
	url := serve(t, site.Handler(1, "v1"), false) + "/nowhere"
	for _, h2 := range []string{"--h2=false", "--h2"} {
		r := reported(t, 0, h2, url)
		if r.Total.Statuses[404] != r.Total.Requests || r.Total.Lost != 0 {
			t.Errorf("%s: %+v", h2, r.Total)
		}
		reported(t, 0, h2, url, "--expect", "404")
		r = reported(t, codeLost, h2, url, "--expect", "200")
		if r.Total.Losses[statusLoss] != r.Total.Requests || !strings.Contains(r.Total.Examples[0], "status 404, want 200") {
			t.Errorf("%s: %+v", h2, r.Total)
		}
	}
	out, _, err := execute(nil, url, "--duration", "50ms")
	if err != nil || !strings.Contains(out, "answered with status 404: ") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestEveryWayToConnect(t *testing.T) {
	plain := serve(t, site.Handler(1, "v1"), false)
	secure := serve(t, site.Handler(1, "v1"), true)
	socket := filepath.Join(t.TempDir(), "socket")
	ln, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: site.Handler(1, "v1"), Protocols: site.Protocols(), ReadHeaderTimeout: time.Minute}
	go s.Serve(ln)
	defer s.Close()
	for name, args := range map[string][]string{
		"in the clear":       {plain},
		"TLS":                {secure, "--insecure"},
		"HTTP/2":             {plain, "--h2"},
		"HTTP/2 over TLS":    {secure, "--h2", "--insecure"},
		"unix:":              {"unix:" + socket},
		"-unix":              {"--unix", socket, "http://anything/slow?ms=1"},
		"HTTP/2 and -unix":   {"--unix", socket, "--h2", "http://anything/"},
		"a pause":            {plain, "--think", "20ms"},
		"without a rate":     {plain, "--rate", "0"},
		"a body from HTTP/2": {"POST", plain + "/echo", "--h2", "--body", strings.Repeat("x", 100_000)},
	} {
		r := reported(t, 0, args...)
		for _, row := range r.Rows {
			if row.Statuses[200] == 0 || row.Reconnects != 0 {
				t.Errorf("%s: %+v", name, row)
			}
		}
	}
}

func TestHeaderAndBodyAreSent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Host != "example.test" || r.Header.Get("X-Key") != "a: b" || r.Header.Get("User-Agent") != "me" || string(body) != "from a file" {
			w.WriteHeader(http.StatusTeapot)
		}
	}), false)
	for _, h2 := range []string{"--h2=false", "--h2"} {
		reported(t, 0, h2, "--method", "PATCH", "--body", "@"+file, "--header", "Host: example.test", "--header", "X-Key: a: b",
			"--header", "User-Agent: me", "--expect", "200", url)
	}
}

// clumsy answers the first request, which is not counted, and then does
// something else.
func clumsy(t *testing.T, then func(net.Conn)) (url string) {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for n := 0; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if n == 0 {
				answerOnce(c)
				continue
			}
			go func() {
				defer c.Close()
				c.Read(make([]byte, 4096))
				then(c)
			}()
		}
	}()
	return "http://" + ln.Addr().String()
}

func answerOnce(c net.Conn) {
	c.Read(make([]byte, 4096))
	io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	c.Close()
}

func TestLossesAreClassified(t *testing.T) {
	say := func(text string) func(net.Conn) { return func(c net.Conn) { io.WriteString(c, text) } }
	for want, then := range map[load.Failure]func(net.Conn){
		load.EOF:       func(net.Conn) {},
		load.Reset:     func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) },
		load.Truncated: say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"),
		load.Timeout:   func(c net.Conn) { io.Copy(io.Discard, c) },
		load.Other:     say("220 mail.example ESMTP\r\n"),
	} {
		r := reported(t, codeLost, clumsy(t, then), "--timeout", "30ms", "--keep", "0")
		if r.Total.Losses[want] != r.Total.Requests || r.Total.Lost != r.Total.Requests || !strings.HasPrefix(r.Total.Examples[0], string(want)+": GET / new") {
			t.Errorf("%s: %+v", want, r.Total)
		}
	}
}

func TestPIDIsRead(t *testing.T) {
	for _, test := range []struct {
		header, body string
		want         int
	}{
		{"", "pid=12 generation=3", 12},
		{"", "pid=12", 12},
		{"34", "pid=12", 34},
		{"34", "", 34},
		{"x", "hello pid=12", 0},
		{"-4", "pid=", 0},
		{"", "pid=99999999999999999999", 0},
	} {
		url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(pidHeader, test.header)
			io.WriteString(w, test.body)
		}), false)
		for _, h2 := range []string{"--h2=false", "--h2"} {
			r := reported(t, 0, url, h2)
			got := 0
			if len(r.Processes) == 1 && r.Processes[0].Answers == r.Total.Requests {
				got = r.Processes[0].PID
			}
			if got != test.want {
				t.Errorf("%s, header %q, body %q: %+v, want %d", h2, test.header, test.body, r.Processes, test.want)
			}
		}
	}
}

func TestCommandsMarkAndExcuse(t *testing.T) {
	var asked atomic.Int64
	most := make(chan struct{})
	url := clumsy(t, func(net.Conn) {
		if asked.Add(1) == 100 { // of 8 clients: most are lost by now
			close(most)
		}
	})
	in, commands := io.Pipe()
	go func() {
		io.WriteString(commands, "mark the deploy\nsay a crash\n")
		<-most
		io.WriteString(commands, "crashed\n")
		commands.Close()
	}()
	out, _, err := execute(in, "--json", "--commands", "--rate", "0", "--duration", "0", url)
	var r report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if r.Total.Cut < 50 || len(r.Marks) != 1 || r.Marks[0].Kind != markCommand || r.Marks[0].Text != "the deploy" {
		t.Errorf("%v: %+v", err, r)
	}
	if r.Total.Cut+r.Total.Lost != r.Total.Requests || (exitCode(err) == codeLost) != (r.Total.Lost > 0) {
		t.Errorf("%v: %+v", err, r.Total)
	}
}

func TestHelpTellsOfEachLoss(t *testing.T) {
	out, _, err := execute(nil, "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range failures {
		if !strings.Contains(out, "\n  "+string(kind)+" ") {
			t.Errorf("no %s in\n%s", kind, out)
		}
	}
}
