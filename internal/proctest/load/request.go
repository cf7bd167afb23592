package load

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is what a client does, again and again.
type Kind string

// The kinds of client.
const (
	New    Kind = "new"    // a new connection for each GET /
	Late   Kind = "late"   // a new connection that says nothing for a while, then GET /
	Get    Kind = "get"    // GET / on a connection that is kept
	Post   Kind = "post"   // POST /echo on a connection that is kept
	Slow   Kind = "slow"   // GET /slow: a request that is in flight nearly all the time
	Stream Kind = "stream" // GET /stream: a response that is in flight nearly all the time
)

// Kinds lists the kinds of client in the order of a report.
var Kinds = []Kind{New, Late, Get, Post, Slow, Stream}

// keeps reports that clients of this kind keep their connection.
func (k Kind) keeps() bool { return k != New && k != Late }

// request is one request, ready to be written, and what its response must be.
type request struct {
	text    string
	silence time.Duration         // the connection says nothing for so long
	hold    time.Duration         // the server is asked to take so long
	check   func(io.Reader) error // reads the body to its end
}

// request returns the n-th request of a client.
func (c *client) request(n int) request {
	hold := c.load.cfg.Hold
	switch c.kind {
	case Post:
		body := payload(c.id, n)
		head := fmt.Sprintf("POST /echo HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", c.load.target.host, len(body))
		return request{text: head + body, check: exactly(body)}
	case Slow:
		return request{text: c.get(fmt.Sprintf("/slow?ms=%d", hold.Milliseconds())), hold: hold, check: exactly(slowBody(hold))}
	case Stream:
		return request{text: c.get(fmt.Sprintf("/stream?ms=%d", hold.Milliseconds())), hold: hold, check: lines(hold)}
	case Late:
		return request{text: c.get("/"), silence: c.think(), check: c.load.identity}
	default:
		return request{text: c.get("/"), check: c.load.identity}
	}
}

// get is the text of a GET. A client that will not keep its connection says
// so: the server then closes first, and no port of the client is used up.
func (c *client) get(path string) string {
	end := "\r\n"
	if !c.kind.keeps() {
		end = "Connection: close\r\n\r\n"
	}
	return "GET " + path + " HTTP/1.1\r\nHost: " + c.load.target.host + "\r\n" + end
}

// payload is a body that no other request has, so that a response which
// belongs to another one is noticed.
func payload(client, n int) string {
	line := fmt.Sprintf("client %d request %d\n", client, n)
	return strings.Repeat(line, 1+rand.IntN(200))
}

func slowBody(hold time.Duration) string {
	return fmt.Sprintf("slow ms=%d\n", hold.Milliseconds())
}

func exactly(want string) func(io.Reader) error {
	return func(r io.Reader) error {
		got, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if string(got) != want {
			return wrong(string(got), want)
		}
		return nil
	}
}

// lines checks each line when it arrives.
func lines(hold time.Duration) func(io.Reader) error {
	return func(r io.Reader) error {
		last := int(hold/streamPace) + 1
		s := bufio.NewScanner(r)
		n := 0
		for s.Scan() {
			n++
			want := fmt.Sprintf("line %d", n)
			if n == last {
				want = "end"
			}
			if s.Text() != want {
				// The last line may be half of one, because the rest was cut.
				return cmp.Or(s.Err(), wrong(s.Text(), want))
			}
		}
		if err := s.Err(); err != nil {
			return err
		}
		if n != last {
			return bodyError(fmt.Sprintf("%d lines, want %d", n, last))
		}
		return nil
	}
}

// streamPace is the time from one line of a stream to the next.
const streamPace = 10 * time.Millisecond

// Known reports that k is one of Kinds.
func (k Kind) Known() bool { return slices.Contains(Kinds, k) }
