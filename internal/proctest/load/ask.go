package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Peer is a server that need not answer as cmd/demo does, and how an Asker
// talks to it.
type Peer struct {
	Network, Address string
	TLS              *tls.Config   // nil: in the clear
	H2               bool          // HTTP/2, in the clear by prior knowledge
	Keep             bool          // a connection is used again
	Timeout          time.Duration // the limit of each of: dialling, and a request
}

// Ask is a request that any server can answer.
type Ask struct {
	Method, Host, Path string
	Fields             []Field
	Body               string
}

// Field is one of a request's header.
type Field struct{ Name, Value string }

// Answer is a complete response, whatever its status.
type Answer struct {
	Status int
	Start  string      // the first bytes of the body, answerStart at most
	Header http.Header // of HTTP/1
	Block  []byte      // of HTTP/2: the header, as HPACK without a dynamic table
}

// answerStart is how much of a body is kept.
const answerStart = 256

// Asker is one client of a Peer, attentive and without retries, as those of a
// Load are. Over HTTP/2 several goroutines may Ask at once, on one connection.
type Asker struct {
	peer Peer
	link link
	h2   *h2
}

// NewAsker returns a client that has not connected yet.
func NewAsker(p Peer) *Asker {
	// It is a client of a load that never starts.
	c := &client{load: &Load{
		cfg:    Config{Timeout: p.Timeout},
		target: target{network: p.Network, address: p.Address, tls: p.TLS},
	}}
	a := &Asker{peer: p, link: link{client: c}, h2: newH2(c)}
	a.h2.keep = answerStart
	return a
}

// Ask makes one attempt. Classify tells what kind of failure an error is.
func (a *Asker) Ask(ctx context.Context, ask Ask) (Answer, error) {
	if a.peer.H2 {
		return a.askH2(ctx, ask)
	}
	if err := a.link.dial(ctx); err != nil {
		return Answer{}, err
	}
	answer, keep, err := a.link.conn.ask(ask.Method, a.text(ask), a.peer.Timeout)
	if err != nil || !keep || !a.peer.Keep {
		a.link.close()
	}
	return answer, err
}

func (a *Asker) askH2(ctx context.Context, ask Ask) (Answer, error) {
	if !a.peer.Keep {
		defer a.Close()
	}
	conn, s, err := a.h2.open(ctx, a.peer.Timeout, a.block(ask), ask.Body == "")
	if err != nil {
		return Answer{}, err
	}
	if err := await(conn, a.peer.Timeout, s, ask.Body); err != nil {
		return Answer{}, err
	}
	return Answer{Status: s.status, Start: s.body.String(), Block: s.block}, nil
}

// Idle lets d pass between two requests, or less when ctx is done, and gives up
// a connection that the server closes meanwhile, which is no failure. So is
// what it says unasked, which can be a farewell alone (status 408).
func (a *Asker) Idle(ctx context.Context, d time.Duration) {
	if a.peer.H2 {
		a.h2.idle(ctx, d)
		return
	}
	began := time.Now()
	a.link.idle(ctx, d)
	if c := a.link.conn; c != nil && c.responses.Buffered() > 0 {
		a.link.count(&a.link.closed, 1)
		a.link.close()
	}
	if a.link.conn == nil {
		rest(ctx, d-time.Since(began))
	}
}

// Dials is how many connections were opened, or tried.
func (a *Asker) Dials() int {
	a.link.mu.Lock()
	defer a.link.mu.Unlock()
	return a.link.dials
}

// Close gives up the connection, if there is one. Nobody may be in Ask.
func (a *Asker) Close() {
	a.link.close()
	a.h2.close()
}

// text is a request of HTTP/1.
func (a *Asker) text(ask Ask) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", ask.Method, ask.Path, ask.Host)
	for _, f := range a.fields(ask) {
		fmt.Fprintf(&b, "%s: %s\r\n", f.Name, f.Value)
	}
	if !a.peer.Keep {
		b.WriteString("Connection: close\r\n") // no port of the client is used up
	}
	return b.String() + "\r\n" + ask.Body
}

// block is the header of a request of HTTP/2.
func (a *Asker) block(ask Ask) []byte {
	b := appendField(nil, ":method", ask.Method)
	b = appendField(b, ":scheme", a.link.load.target.scheme())
	b = appendField(b, ":authority", ask.Host)
	b = appendField(b, ":path", ask.Path)
	for _, f := range a.fields(ask) {
		b = appendField(b, strings.ToLower(f.Name), f.Value)
	}
	return b
}

func (a *Asker) fields(ask Ask) []Field {
	switch {
	case ask.Body != "", ask.Method == http.MethodPost, ask.Method == http.MethodPut, ask.Method == http.MethodPatch:
		return append(slices.Clip(ask.Fields), Field{"Content-Length", strconv.Itoa(len(ask.Body))})
	}
	return ask.Fields
}

// ask writes one request and reads the response to its end.
func (c *conn) ask(method, text string, limit time.Duration) (a Answer, keep bool, err error) {
	if err := c.begin(limit); err != nil {
		return Answer{}, false, err
	}
	unwritten := c.write(text, 0, 0)
	// A server may answer before it has read a large body, and then close.
	a, keep, err = c.answer(method)
	if err != nil && unwritten != nil {
		err = &phaseError{phase: "write", err: unwritten}
	}
	return a, keep && unwritten == nil, err
}

func (c *conn) answer(method string) (a Answer, keep bool, err error) {
	resp, err := c.final(method)
	if err != nil {
		return Answer{}, false, c.failed(err)
	}
	defer resp.Body.Close()
	start, err := io.ReadAll(io.LimitReader(resp.Body, answerStart))
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	keep = !resp.Close && resp.StatusCode != http.StatusSwitchingProtocols
	return Answer{Status: resp.StatusCode, Header: resp.Header, Start: string(start)}, keep, c.failed(err)
}

// final skips informational responses.
func (c *conn) final(method string) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(c.responses, &http.Request{Method: method})
		if err != nil || resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
		_ = resp.Body.Close() // empty
	}
}

// TLS is a handshake that the server or this client refused. A Load has it
// among Other, because it takes any certificate.
const TLS Failure = "tls"

// AskFailures are the kinds of failure that Classify returns, in the order of a
// report.
var AskFailures = []Failure{Refused, Reset, EOF, Truncated, Timeout, TLS, Rejected, Other}

// Classify says what kind of failure an error of Ask is.
func Classify(err error) Failure {
	kind := classify(err)
	if at := (*phaseError)(nil); kind == Other && errors.As(err, &at) && at.phase == "handshake" {
		return TLS
	}
	if kind == Body { // it has spoken unasked
		return Other
	}
	return kind
}

// Cut reports that a process that dies can cause f on the connections that it
// has accepted, and on no others.
func (f Failure) Cut() bool { return f.cut() }
