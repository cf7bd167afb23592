package load

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// respond reads one request, wherever it is cut, and returns the right answer.
func respond(t *testing.T, in *bufio.Reader) (answer string, err error) {
	t.Helper()
	if next, err := in.Peek(2); err == nil && string(next) == "\r\n" {
		in.Discard(2) // the stray line after a POST
	}
	req, err := http.ReadRequest(in)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return "", err
	}
	if req.Method == "POST" {
		return ok(string(body)), nil
	}
	return ok("pid=7 generation=3 version=v1\n"), nil
}

func lastOne(answer string) string {
	return strings.Replace(answer, "\r\n", "\r\nConnection: close\r\n", 1)
}

var batches = []Kind{Pipeline, Chaos}

// A server that answers one request on each connection, and says so, makes the
// client send the rest again; it must neither be lost nor go unmentioned.
func TestToldIsNoFailure(t *testing.T) {
	target := raw(t, func(c net.Conn, in *bufio.Reader) {
		answer, err := respond(t, in)
		if err != nil {
			t.Error(err)
		}
		say(lastOne(answer))(c)
		c.(*net.TCPConn).CloseWrite()
		hang(c) // a close now would reset the connection, and destroy the answer
	})
	r := one(t, target, Pipeline, 8)
	// Batches of 4 to 8: the first of each attempt is answered.
	if r.Total.Failed != 0 || r.Total.Requests != 8 || r.Total.Dials != 8 || r.Total.Told < 3+3 {
		t.Errorf("told %d\n%v", r.Total.Told, r)
	}
	if want := fmt.Sprintf("and sent again: pipeline %d\n", r.Total.Told); !strings.Contains(r.String(), want) {
		t.Errorf("no %q in\n%v", want, r)
	}

	r = one(t, target, Chaos, 20)
	if r.Total.Failed != 0 || r.Total.Requests != 20 || r.Total.Dials != 20 {
		t.Errorf("told %d\n%v", r.Total.Told, r)
	}
}

// A batch whose connection ends without a word is lost from there on.
func TestCloseWithinABatchFails(t *testing.T) {
	for _, kind := range batches {
		t.Run(string(kind), func(t *testing.T) {
			target := raw(t, func(c net.Conn, in *bufio.Reader) {
				if answer, err := respond(t, in); err == nil {
					say(answer)(c)
				}
				c.(*net.TCPConn).CloseWrite()
				hang(c)
			})
			r := one(t, target, kind, 20)
			if answered := r.Total.Steady.N; answered != r.Total.Dials || r.Total.Failed != 20-answered || answered > 20-2 {
				t.Errorf("%d answered\n%v", answered, r)
			}
			if r.Total.Failures[EOF]+r.Total.Failures[Truncated] != r.Total.Failed {
				t.Error(r)
			}
		})
	}
}

// Two answers in the wrong order have the right bytes, of other requests.
func TestAnswersInTheWrongOrderFail(t *testing.T) {
	for _, kind := range batches {
		t.Run(string(kind), func(t *testing.T) {
			target := raw(t, func(c net.Conn, in *bufio.Reader) {
				var earlier string
				for {
					answer, err := respond(t, in)
					if err != nil {
						return
					}
					if earlier == "" && in.Buffered() > len("\r\n") {
						earlier = answer
						continue
					}
					say(answer + earlier)(c)
					earlier = ""
				}
			})
			r := one(t, target, kind, 400)
			if r.Total.Failures[Body] == 0 {
				t.Error(r)
			}
		})
	}
}

// What the client writes between two requests means nothing.
func TestChaosIsChaotic(t *testing.T) {
	var stray, chunked, lengths, pieces int
	ended := make(chan struct{})
	target := raw(t, func(c net.Conn, _ *bufio.Reader) {
		defer close(ended)
		in := bufio.NewReader(io.TeeReader(c, counter(func([]byte) { pieces++ })))
		for {
			if next, err := in.Peek(2); err == nil && string(next) == "\r\n" {
				stray++
				in.Discard(2)
			}
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(req.Body)
			answer := ok("pid=7 generation=3 version=v1\n")
			if req.Method == "POST" {
				answer = ok(string(body))
			}
			if req.ContentLength < 0 {
				chunked++
			} else if req.ContentLength > 0 {
				lengths++
			}
			say(answer)(c)
		}
	})
	r := one(t, target, Chaos, 200)
	if r.Total.Failed != 0 || r.Total.Dials != 1 {
		t.Error(r)
	}
	<-ended
	if stray < 20 || chunked < 20 || lengths < 20 || pieces < 100 {
		t.Errorf("%d stray lines, %d in chunks, %d with a length, in %d pieces", stray, chunked, lengths, pieces)
	}
}

type counter func([]byte)

func (f counter) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}
