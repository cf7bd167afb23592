//go:build unix

package client

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/client/fake"
	"github.com/go-handover/handover/internal/wire"
	"github.com/go-handover/handover/upgrader"
)

const limit = 20 * time.Second

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

var one = upgrader.Status{Processes: []upgrader.Process{{Generation: 1, PID: 4711, Self: true, State: "serving"}}}

func TestDoReturnsTheAnswerAfterTheEvents(t *testing.T) {
	s := fake.Listen(t, map[string]func(*fake.Conn){wire.VerbUpgrade: func(c *fake.Conn) {
		for _, p := range []upgrader.Phase{upgrader.PhasePrepare, upgrader.PhaseHello} {
			c.Event(upgrader.Event{Kind: upgrader.EventPhase, Phase: p})
		}
		c.Status(one)                                                  // of no concern
		c.Raw.Write([]byte("\x00\x00\x00\x13{\"type\":\"teleport\"}")) // of a later version
		c.Answer(wire.ResultBusy, "why", one)
	}})
	var phases []upgrader.Phase
	a, err := Client{s.Path}.Do(within(t, limit), wire.VerbUpgrade, func(e upgrader.Event) error {
		phases = append(phases, e.Phase)
		return nil
	})
	if err != nil || a.Result != wire.ResultBusy || a.Text != "why" || a.Status.Processes[0].PID != 4711 {
		t.Errorf("%+v, %v", a, err)
	}
	if len(phases) != 2 || phases[0] != upgrader.PhasePrepare || phases[1] != upgrader.PhaseHello {
		t.Errorf("phases %q", phases)
	}
}

func TestErrorOfTheCallbackEndsTheRequest(t *testing.T) {
	closed := make(chan struct{})
	s := fake.Listen(t, map[string]func(*fake.Conn){wire.VerbWatch: func(c *fake.Conn) {
		c.Status(one)
		c.UntilClosed()
		close(closed)
	}})
	enough := errors.New("enough")
	_, err := Client{s.Path}.Watch(within(t, limit), func(s upgrader.Status, raw json.RawMessage) error {
		if s.Processes[0].PID != 4711 || !strings.Contains(string(raw), "4711") {
			t.Errorf("%+v, %s", s, raw)
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Errorf("%v, want the callback's error", err)
	}
	<-closed
}

// What a server sends, or does not, comes out as an error that says so.
func TestServersThatDoNotAnswer(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(*fake.Conn)
		want error
		text string
	}{
		"ends":            {func(*fake.Conn) {}, ErrNoAnswer, "without an answer"},
		"ends in a frame": {func(c *fake.Conn) { c.Raw.Write([]byte{0, 0, 1, 0, '{'}) }, ErrNoAnswer, "without an answer"},
		"garbage":         {func(c *fake.Conn) { c.Raw.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, nil, "is it the control socket"},
		"no JSON":         {func(c *fake.Conn) { c.Raw.Write([]byte{0, 0, 0, 2, '{', '['}) }, nil, "is it the control socket"},
		"no status":       {func(c *fake.Conn) { c.Send(wire.Answer{Result: "done", Status: []byte(`[1]`)}) }, nil, "is it the control socket"},
		"silent":          {nil, os.ErrDeadlineExceeded, "no answer in time"},
		"half, then silent": {func(c *fake.Conn) {
			c.Raw.Write([]byte{0, 0, 1, 0, '{'})
			c.UntilClosed()
		}, os.ErrDeadlineExceeded, "no answer in time"},
	} {
		t.Run(name, func(t *testing.T) {
			d := limit
			if test.want == os.ErrDeadlineExceeded { //nolint:errorlint // the table has it bare
				d = 50 * time.Millisecond
			}
			s := fake.Listen(t, map[string]func(*fake.Conn){wire.VerbStatus: test.do})
			_, err := Client{s.Path}.Status(within(t, d))
			if !errors.As(err, new(*Error)) || !strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), s.Path) {
				t.Fatalf("%v, want an Error with %q and the path", err, test.text)
			}
			if test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("%v, want %v in its chain", err, test.want)
			}
		})
	}
}

// It may have answered and closed before the request was even written.
func TestRefusalBeforeTheRequestIsHeard(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wire.NewConn(c.(*net.UnixConn)).Send(wire.Answer{Result: wire.ResultRefused, Text: "uid 7"})
			c.Close()
		}
	}()
	for range 100 {
		a, err := Client{path}.Status(within(t, limit))
		if err != nil || a.Result != wire.ResultRefused || a.Text != "uid 7" {
			t.Fatalf("%+v, %v", a, err)
		}
	}
}

func TestUnreachableSocketsSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, "left")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for name, test := range map[string]struct {
		path string
		want error
		hint string
	}{
		"missing":  {filepath.Join(dir, "none"), fs.ErrNotExist, "Options.ControlSocket"},
		"left":     {left, syscall.ECONNREFUSED, "nobody listens"},
		"file":     {file, syscall.ECONNREFUSED, "not a socket"},
		"too long": {filepath.Join(dir, strings.Repeat("x", 200)), syscall.EINVAL, "100 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Client{test.path}.Status(within(t, limit))
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.hint) {
				t.Errorf("%v, want %v with %q", err, test.want, test.hint)
			}
			if strings.Count(err.Error(), test.path) != 1 {
				t.Errorf("want the path once: %v", err)
			}
		})
	}
}

func TestSocketOfAnotherUserSaysSo(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("nothing is forbidden to root; TestOtherUserIsRefused has a second uid")
	}
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "control"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(filepath.Join(dir, "control"), 0); err != nil {
		t.Fatal(err)
	}
	_, err = Client{filepath.Join(dir, "control")}.Status(within(t, limit))
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "be the user") {
		t.Errorf("%v", err)
	}
}

// Linux does not let a dial wait in a full queue.
func TestFullQueueIsWaitedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	first, err := net.Dial("unix", path) // fills it
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		t.Skip("this system has room for more than was asked for")
	}

	asked := within(t, 100*time.Millisecond)
	if _, err := (Client{path}).Status(asked); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%v, want a wait to the end of the limit", err)
	}
	answered := make(chan error, 1)
	ctx := within(t, limit)
	go func() {
		_, err := Client{path}.Status(ctx)
		answered <- err
	}()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 2 {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		wire.NewConn(c.(*net.UnixConn)).Send(wire.Answer{Result: wire.ResultDone})
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func TestInterruptionIsNotAnErrorOfTheServer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := fake.Listen(t, map[string]func(*fake.Conn){wire.VerbStatus: func(c *fake.Conn) {
		cancel()
		c.UntilClosed()
	}})
	_, err := Client{s.Path}.Status(ctx)
	if !errors.Is(err, context.Canceled) || errors.As(err, new(*Error)) {
		t.Errorf("%v, want context.Canceled alone", err)
	}
}
