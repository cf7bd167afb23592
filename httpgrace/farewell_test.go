package httpgrace

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A speaker is a client of HTTP/2 that notes each frame it gets, and when.
type speaker struct {
	*client
	start time.Time
	got   chan string
	pings chan string // the payload of each PING
}

func speak(c *client) *speaker {
	h := &speaker{client: c, start: time.Now(), got: make(chan string, 100), pings: make(chan string, 100)}
	go h.listen()
	return h
}

func (h *speaker) listen() {
	defer close(h.got)
	for {
		kind, flags, stream, payload, err := readFrame(h.br)
		if err != nil {
			h.note("end")
			return
		}
		switch kind {
		case 0:
			h.note(fmt.Sprintf("DATA %d", stream))
		case frameHeaders:
			h.note(fmt.Sprintf("HEADERS %d", stream))
		case 3:
			h.note(fmt.Sprintf("RST_STREAM %d", stream))
		case framePing:
			if flags&flagAck == 0 {
				h.pings <- string(payload)
				h.note("PING")
			}
		case frameGoAway:
			h.note(fmt.Sprintf("GOAWAY %d", binary.BigEndian.Uint32(payload)))
		}
	}
}

func (h *speaker) note(what string) {
	h.got <- fmt.Sprintf("%s %v", what, time.Since(h.start))
}

func readFrame(r io.Reader) (kind, flags byte, stream uint32, payload []byte, err error) {
	var head [frameHeaderSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, 0, nil, err
	}
	payload = make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
	_, err = io.ReadFull(r, payload)
	return head[3], head[4], binary.BigEndian.Uint32(head[5:]), payload, err
}

// pong answers a PING.
func (h *speaker) pong() {
	h.send("\x00\x00\x08\x06\x01\x00\x00\x00\x00" + <-h.pings)
}

// waits reads until a frame like this comes.
func (h *speaker) waits(want string) {
	h.t.Helper()
	for got := range h.got {
		if strings.HasPrefix(got, want) {
			return
		}
	}
	h.t.Errorf("no %q", want)
}

// all returns what has come until the end.
func (h *speaker) all() []string { return slices.Collect(chanOf(h.got)) }

func chanOf(c <-chan string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for s := range c {
			if !yield(s) {
				return
			}
		}
	}
}

func h2cServer() *Server {
	return &Server{Server: &http.Server{Handler: http.HandlerFunc(sleepy), Protocols: protocol{http1: true, h2c: true}.spoken()}}
}

// begin makes a connection that has asked once, so long ago that it is not fresh.
func (b *bench) begin() *speaker {
	h := speak(b.dial())
	h.send(clientPreface + emptySettings + headersFrame(1))
	h.waits("DATA 1")
	time.Sleep(time.Minute)
	synctest.Wait()
	h.start = time.Now()
	for len(h.got) > 0 {
		<-h.got
	}
	return h
}

func (b *bench) shuttingDown() chan error {
	err := make(chan error, 1)
	go func() { err <- b.srv.Shutdown(b.Context()) }()
	synctest.Wait()
	return err
}

// What the client sees of the farewell, at which time. A stream that it opens
// before it knows, or against the rules a moment after, is answered.
func TestFarewellOfHTTP2(t *testing.T) {
	virtual(t, h2cServer(), func(b *bench) {
		h := b.begin()
		shut := b.shuttingDown()
		h.pong()
		time.Sleep(900 * time.Millisecond)
		h.send(headersFrame(3))
		got := h.all()
		want := []string{
			"GOAWAY 2147483647 0s", "PING 0s",
			"HEADERS 3 900ms", "DATA 3 900ms",
			"GOAWAY 3 1s", "end 2s",
		}
		if !slices.Equal(got, want) {
			b.Errorf("got  %q\nwant %q", got, want)
		}
		if err := <-shut; err != nil {
			b.Error(err)
		}
		b.want(Stats{})
	})
}

// A client far away gets its round trip, whatever it takes within the limit.
func TestFarewellWaitsForARoundTrip(t *testing.T) {
	for answered, second := range map[time.Duration]string{
		3 * time.Second: "3s",
		time.Hour:       "5s", // the limit
	} {
		virtual(t, h2cServer(), func(b *bench) {
			h := b.begin()
			shut := b.shuttingDown()
			go func() {
				time.Sleep(answered)
				h.pong()
			}()
			if got := h.all(); !slices.Contains(got, "GOAWAY 1 "+second) {
				b.Errorf("answered after %v: %q", answered, got)
			}
			if err := <-shut; err != nil {
				b.Error(err)
			}
			time.Sleep(answered)
			synctest.Wait()
		})
	}
}

// A PING of net/http's own is no round trip of ours.
func TestFarewellIgnoresOtherPings(t *testing.T) {
	virtual(t, h2cServer(), func(b *bench) {
		h := b.begin()
		shut := b.shuttingDown()
		h.send("\x00\x00\x08\x06\x01\x00\x00\x00\x00" + "whatever")
		if got := h.all(); !slices.Contains(got, "GOAWAY 1 5s") {
			b.Errorf("%q", got)
		}
		<-shut
	})
}

// A connection that has just been made gets its first request in, and those that
// were waiting for it.
func TestFarewellOfAFreshConnection(t *testing.T) {
	virtual(t, h2cServer(), func(b *bench) {
		h := speak(b.dial())
		h.send(clientPreface + emptySettings)
		synctest.Wait()
		h.start = time.Now()
		shut := b.shuttingDown()
		time.Sleep(500 * time.Millisecond)
		h.send(headersFrame(1))
		h.pong()
		got := h.all()
		want := []string{
			"HEADERS 1 500ms", "DATA 1 500ms",
			"GOAWAY 2147483647 750ms", "PING 750ms",
			"GOAWAY 1 1.75s", "end 2.75s",
		}
		if !slices.Equal(got, want) {
			b.Errorf("got  %q\nwant %q", got, want)
		}
		<-shut
	})
}

func TestFarewellOfAConnectionThatAsksForNothing(t *testing.T) {
	virtual(t, h2cServer(), func(b *bench) {
		h := speak(b.dial())
		h.send(clientPreface + emptySettings)
		synctest.Wait()
		shut := b.shuttingDown()
		h.pong()
		if got, want := h.all(), []string{"GOAWAY 2147483647 1s", "PING 1s", "GOAWAY 0 2s", "end 3s"}; !slices.Equal(got, want) {
			b.Errorf("got  %q\nwant %q", got, want)
		}
		<-shut
	})
}

// The first step is slipped in between two frames, however net/http writes them,
// and what it writes arrives whole.
func TestFarewellInTheMiddleOfAResponse(t *testing.T) {
	srv := h2cServer()
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range 50 {
			w.Write(make([]byte, 1000))
			time.Sleep(100 * time.Millisecond)
		}
	})
	virtual(t, srv, func(b *bench) {
		c := b.dial()
		c.send(clientPreface + emptySettings + headersFrame(1))
		shut := b.shuttingDown()
		total, goAways := 0, []uint32{}
		for {
			kind, flags, _, payload, err := readFrame(c.br)
			if err != nil {
				break
			}
			switch {
			case kind == 0:
				total += len(payload)
			case kind == frameGoAway:
				goAways = append(goAways, binary.BigEndian.Uint32(payload))
			case kind == framePing && flags == 0:
				go c.send("\x00\x00\x08\x06\x01\x00\x00\x00\x00" + string(payload))
			}
		}
		if total != 50_000 || !slices.Equal(goAways, []uint32{maxStream, 1}) {
			b.Errorf("%d bytes, GOAWAYs %v", total, goAways)
		}
		if err := <-shut; err != nil {
			b.Error(err)
		}
	})
}

// When nobody may idle any more, no step is waited for.
func TestFarewellInAHurry(t *testing.T) {
	hurry := make(chan struct{})
	srv := h2cServer()
	virtual(t, srv, func(b *bench) {
		hurry = make(chan struct{})
		srv.Hurry = hurry
		h := b.begin()
		shut := b.shuttingDown()
		time.Sleep(100 * time.Millisecond)
		close(hurry)
		if got := h.all(); !slices.Contains(got, "GOAWAY 1 100ms") {
			b.Errorf("%q", got)
		}
		<-shut
	})
}

// In net/http, a stream that crosses the only GOAWAY is dropped without a word.
func TestHTTP2StreamThatCrossesTheGoAwayIsServed(t *testing.T) {
	answers := func(k kind) (got []string) {
		synctest.Test(t, func(t *testing.T) {
			srv := k.make(h2cServer().Server)
			ln := newPipeListener()
			served := serving(srv, ln)
			h := speak(newClient(t, ln.dial()))
			h.send(clientPreface + emptySettings + headersFrame(1))
			h.waits("DATA 1")
			time.Sleep(time.Minute)
			go srv.Shutdown(t.Context())
			h.waits("GOAWAY")
			h.send(headersFrame(3))
			got = h.all()
			h.nc.Close()
			<-served
			synctest.Wait()
		})
		return got
	}
	served := func(got []string) bool {
		return slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "DATA 3") })
	}
	if got := answers(plainKind); served(got) {
		t.Errorf("net/http serves it: the test proves nothing: %q", got)
	}
	if got := answers(graceKind); !served(got) {
		t.Errorf("%q", got)
	}
}

// In net/http, Shutdown waits for ever for a connection that completes its
// handshake when everybody else has been told, and asks for nothing
// (golang/go#81153).
func TestHTTP2ConnectionThatIsLateAndSilentIsTold(t *testing.T) {
	cert, pool := testCertificate()
	shutdown := func(k kind) (err error) {
		synctest.Test(t, func(t *testing.T) {
			hs := &http.Server{Handler: http.HandlerFunc(sleepy), TLSConfig: tlsConfig(cert)}
			srv := k.make(hs)
			ln := newPipeListener()
			served := make(chan error, 1)
			go func() { served <- srv.ServeTLS(ln, "", "") }()
			nc := ln.dial()
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- srv.Shutdown(ctx) }()
			synctest.Wait()
			client := &tls.Config{RootCAs: pool, ServerName: "localhost", NextProtos: []string{"h2"}}
			h := speak(newClient(t, tls.Client(nc, client)))
			h.send(clientPreface + emptySettings)
			err = <-done
			srv.Close()
			h.nc.Close()
			<-served
			synctest.Wait()
		})
		return err
	}
	if err := shutdown(plainKind); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("net/http: %v: the test proves nothing", err)
	}
	if err := shutdown(graceKind); err != nil {
		t.Error(err)
	}
}
