//go:build linux

package probe

import (
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/site"
	"github.com/go-handover/handover/internal/wire"
	"github.com/go-handover/handover/upgrader"
)

// controlled is a control socket on which a test says what happens. Each
// session sends what is sent to statuses, until the value that ends it.
func controlled(t *testing.T, statuses <-chan *upgrader.Status) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "control")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			c, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			conn := wire.NewConn(c)
			if m, _, err := conn.Receive(); err != nil || m != (wire.Request{Version: wire.Version, Verb: wire.VerbWatch}) {
				t.Errorf("the request is %v, %v", m, err)
			}
			for s := range statuses {
				if s == nil {
					conn.Send(wire.Answer{Result: wire.ResultGone})
					break
				}
				text, err := json.Marshal(s)
				if err != nil {
					t.Error(err)
				}
				conn.Send(wire.Notice{Status: text})
			}
			conn.Close()
		}
	})
	return path
}

func TestControlSocketTellsOfUpgrades(t *testing.T) {
	old := upgrader.Process{PID: 10, State: "serving", Self: true}
	probation := []upgrader.Process{{PID: 11, State: "on probation"}, {PID: 10, State: "probation", Self: true}}
	done := &upgrader.Verdict{Result: upgrader.Upgraded, PID: 11, Ended: time.Now()}
	doneToo := &upgrader.Verdict{Result: upgrader.Upgraded, PID: 11, Ended: time.Now().Add(time.Millisecond)}
	failed := &upgrader.Verdict{Result: upgrader.Failed, Reason: "no such file", Ended: time.Now().Add(time.Second)}
	back := &upgrader.Verdict{Result: upgrader.RolledBack, PID: 12, Reason: "it died", Ended: time.Now().Add(2 * time.Second)}
	now := []upgrader.Process{{PID: 11, State: "serving", Self: true}}

	statuses := make(chan *upgrader.Status)
	o := options{socket: controlled(t, statuses)}
	go func() {
		defer close(statuses)
		for _, s := range []*upgrader.Status{
			// What was there before the probe is no news.
			{Processes: []upgrader.Process{old}, Last: &upgrader.Verdict{Result: upgrader.Failed, PID: 9, Ended: time.Now()}},
			{Processes: []upgrader.Process{{PID: 11, State: "started"}, old}},
			{Processes: probation},
			{Processes: probation},
			{Processes: probation, Last: done},
			nil, // the old one leaves, and the new one has a verdict of its own
			{Processes: now, Last: doneToo},
			{Processes: now, Last: failed},
			{Processes: append([]upgrader.Process{{PID: 12, State: "on probation"}}, now...), Last: failed},
			{Processes: now, Last: back},
		} {
			statuses <- s
		}
	}()
	p := &probe{started: time.Now().Round(0)} // by the wall clock, as verdicts are
	unfollow, err := o.follow(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	p.saw(10, time.Now())
	p.saw(11, time.Now()) // no mark: the socket tells
	want := []mark{
		{kind: markUpgrade, text: "process 11 serves"},
		{kind: markConfirmed, text: "upgraded (pid 11)"},
		{kind: markFailed, text: "failed: no such file"},
		{kind: markUpgrade, text: "process 12 serves"},
		{kind: markRolledBack, text: "rolled back (pid 12): it died"},
	}
	for limit := time.Now().Add(10 * time.Second); p.countMarks() < len(want) && time.Now().Before(limit); {
		time.Sleep(time.Millisecond)
	}
	if err := unfollow(); err != nil {
		t.Error(err)
	}
	if len(p.marks) != len(want) {
		t.Fatalf("marks %+v, want %+v", p.marks, want)
	}
	for i, m := range p.marks {
		if m.kind != want[i].kind || m.text != want[i].text {
			t.Errorf("mark %+v, want %+v", m, want[i])
		}
	}
	if at := p.marks[2].at; at != failed.Ended.Sub(p.started).Round(0) {
		t.Errorf("the verdict is marked at %v, not when it was reached", at)
	}
}

func (p *probe) countMarks() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.marks)
}

func TestControlSocketRefuses(t *testing.T) {
	url := serve(t, site.Handler(1, "v1"), false)
	path := filepath.Join(t.TempDir(), "control")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		conn := wire.NewConn(c)
		conn.Receive()
		conn.Send(wire.Answer{Result: wire.ResultRefused, Text: "uid 7 may not"})
		conn.Close()
	}()
	if _, _, err := execute(nil, "--socket", path, url); exitCode(err) != codeUnreachable || !strings.Contains(err.Error(), "uid 7 may not") {
		t.Errorf("%v (exit code %d)", err, exitCode(err))
	}
}
