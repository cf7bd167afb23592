package site

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// request has a trailer if its body is in chunks.
func request(t *testing.T, method, url, body string, header http.Header) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if header.Get("X-Check") != "" {
		req.ContentLength, req.Trailer = -1, header
	} else if header != nil {
		req.Header = header
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func TestAnswers(t *testing.T) {
	s := httptest.NewServer(Handler(4, "v1"))
	defer s.Close()
	check := http.Header{"X-Check": {"7"}}
	for _, test := range []struct {
		method, path, body string
		header             http.Header
		code               int
		want               string // prefix
	}{
		{"GET", "/", "", nil, 200, "pid="},
		{"GET", "/healthz", "", nil, 200, "ok\n"},
		{"GET", "/page", "", nil, 200, "<!doctype html>\n"},
		{"POST", "/echo", "abc\x00\n", nil, 200, "abc\x00\n"},
		{"GET", "/slow?ms=1", "", nil, 200, "slow ms=1\n"},
		{"GET", "/stream?ms=20", "", nil, 200, "line 1\nline 2\nend\n"},
		{"GET", "/stream?ms=0", "", nil, 200, "end\n"},
		{"GET", "/download?ms=20&seed=a", "", nil, 200, strings.Repeat("a block 0\n", 410)[:blockSize] + "a block 1\n"},
		{"GET", "/cached", "", nil, 200, "cached\n"},
		{"GET", "/cached", "", http.Header{"If-None-Match": {`"1"`}}, 304, ""},
		{"GET", "/cached", "", http.Header{"If-None-Match": {`"2"`}}, 200, "cached\n"},
		{"POST", "/trailers", "abc", check, 200, "abc"},
		{"POST", "/trailers", "abc", nil, 400, "want the trailer X-Check"},
		{"GET", "/heap?mb=1", "", nil, 200, "heap mb=1\n"},
		{"GET", "/slow?ms=-1", "", nil, 400, `ms="-1": want a number`},
		{"GET", "/stream", "", nil, 400, `ms="": want a number`},
		{"GET", "/download", "", nil, 400, `ms="": want a number`},
		{"GET", "/heap?mb=9999999999", "", nil, 400, `mb="9999999999": want a number`},
		{"GET", "/ws", "", nil, 426, "this is a WebSocket"},
		{"GET", "/elsewhere", "", nil, 404, ""},
		{"GET", "/echo", "", nil, 405, ""},
	} {
		resp := request(t, test.method, s.URL+test.path, test.body, test.header)
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != test.code || !strings.HasPrefix(string(body), test.want) {
			t.Errorf("%s %s: %d %q %v, want %d %q", test.method, test.path, resp.StatusCode, body, err, test.code, test.want)
		}
		if got := resp.Trailer.Get("X-Check"); test.code == 200 && got != test.header.Get("X-Check") {
			t.Errorf("%s %s: trailer %q", test.method, test.path, got)
		}
	}
}

func TestEventsGoOnAfterTheLastOneThatWasSeen(t *testing.T) {
	addr, _ := serve(t)
	resp := request(t, "GET", "http://"+addr+"/events", "", http.Header{"Last-Event-Id": {"41"}})
	defer resp.Body.Close()
	const want = "id: 42\ndata: event 42\n\nid: 43\ndata: event 43\n\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
}

func TestEventsEndWithAWholeOneInADrain(t *testing.T) {
	addr, drain := serve(t)
	resp := request(t, "GET", "http://"+addr+"/events", "", nil)
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	if line, err := in.ReadString('\n'); err != nil || line != "id: 1\n" {
		t.Fatalf("%q, %v", line, err)
	}
	ended := make(chan []byte, 1)
	go func() {
		rest, err := io.ReadAll(in) // an unclean end is an error
		if err != nil {
			t.Error(err)
		}
		ended <- rest
	}()
	drain()
	if rest := string(<-ended); !strings.HasSuffix(rest, "\n\n") {
		t.Errorf("the stream ends with %.40q", rest[max(0, len(rest)-40):])
	}
}

func TestAllProtocolsAreOffered(t *testing.T) {
	s := httptest.NewUnstartedServer(Handler(4, "v1"))
	s.Config.Protocols = Protocols()
	s.Start()
	defer s.Close()
	for _, only := range []func(*http.Protocols){
		func(p *http.Protocols) { p.SetHTTP1(true) }, func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) },
	} {
		p := new(http.Protocols)
		only(p)
		client := &http.Client{Transport: &http.Transport{Protocols: p}}
		resp, err := client.Get(s.URL + "/healthz")
		if err != nil {
			t.Errorf("%v: %v", p, err)
			continue
		}
		resp.Body.Close()
		client.CloseIdleConnections()
	}
}
