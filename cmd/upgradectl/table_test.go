package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-handover/handover/upgrader"
)

// now is the moment at which the golden tables are looked at.
var now = time.Date(2026, 3, 4, 15, 4, 5, 0, time.UTC)

func ago(d time.Duration) time.Time { return now.Add(-d) }

func ptr(n int) *int { return &n }

// statuses are what there can be, by the name of their golden file.
var statuses = map[string]upgrader.Status{
	"first": {
		Processes: []upgrader.Process{{
			Generation: 1, PID: 4711, Self: true, Version: "v1.0.0", State: "serving", Since: ago(9 * time.Second), Connections: ptr(0),
		}},
		Sockets: []upgrader.Socket{{Name: "http", Kind: "listener", Network: "tcp", Address: "127.0.0.1:8080"}},
	},
	"three": {
		Processes: []upgrader.Process{
			{
				Generation: 3, PID: 4713, Self: true, Version: "v1.2.0", Revision: "0123456789abcdef0123456789abcdef01234567",
				State: "serving", Since: ago(192 * time.Second), Connections: ptr(1204),
			},
			{
				Generation: 2, PID: 4712, Version: "v1.1.0", Revision: "fedcba9876543210", State: "draining",
				Since: ago(192 * time.Second), Connections: ptr(17), Deadline: now.Add(408 * time.Second),
			},
			{Generation: 1, PID: 998, State: "draining", Since: ago(26 * time.Hour), Deadline: ago(time.Second)},
		},
		Sockets: []upgrader.Socket{
			{Name: ".control", Kind: "listener", Network: "unix", Address: "/run/app/control"},
			{Name: "http", Kind: "listener", Network: "tcp", Address: "[::]:8080"},
			{Name: "state", Kind: "file"},
			{Name: "syslog", Kind: "packet", Network: "udp", Address: "127.0.0.1:514"},
		},
		Last: &upgrader.Verdict{
			Result: upgrader.Upgraded, PID: 4713, Ended: ago(192 * time.Second), Duration: 5213 * time.Millisecond,
		},
		Counters: upgrader.Counters{Upgrades: 2, Failures: 1, Killed: 1},
		Log:      "/var/log/app.log",
	},
	"standby": { // and a state of a later version
		Processes: []upgrader.Process{
			{Generation: 2, PID: 4713, Version: "v2", State: "standby", Since: ago(time.Minute)},
			{Generation: 2, PID: 4714, Version: "v3", State: "warming up, 40 %", Since: ago(time.Second)},
			{Generation: 1, PID: 4711, Self: true, Version: "v1", State: "serving", Since: ago(time.Hour), Connections: ptr(3)},
		},
	},
	"rolled-back": {
		Processes: []upgrader.Process{
			{Generation: 2, PID: 4714, Version: "v2", State: "probation", Since: ago(0)},
			{Generation: 1, PID: 4711, Self: true, Version: "v1", State: "probation", Since: ago(0), Connections: ptr(3)},
		},
		Last: &upgrader.Verdict{
			Result: upgrader.RolledBack, PID: 4712, Phase: upgrader.PhaseProbation, Ended: ago(50 * time.Hour),
			Duration: 1512 * time.Millisecond, Reason: "upgrader: probation: /srv/app (pid 4712): it ended (exit status 2)",
			Text: "panic: no\x1b[31m database\ngoroutine 1 [running]:",
		},
		Counters: upgrader.Counters{Rollbacks: 1},
	},
}

func TestStatusTables(t *testing.T) {
	for name, s := range statuses {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			writeStatus(&b, s, now)
			golden(t, "status-"+name+".txt", b.String())
			if strings.Contains(b.String(), "\x1b") {
				t.Error("what a process says reaches the terminal as it is")
			}
		})
	}
}

// A row has as many words as the header, so that awk finds its column; only
// since and deadline have more.
func TestEmptyCellsAreShown(t *testing.T) {
	var b bytes.Buffer
	writeProcesses(&b, []upgrader.Process{{Generation: 1, PID: 7, Version: "a b", State: "serving"}}, now)
	rows := strings.Split(b.String(), "\n")
	if got := strings.Fields(rows[1]); len(got) != 9 || got[4] != "-" || got[6] != "-" || got[7] != "-" || got[8] != "-" {
		t.Errorf("%q", got)
	}
}

func TestDurationsAreShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 999 * time.Millisecond: "0s", 59 * time.Second: "59s", time.Minute: "1m0s",
		61*time.Minute + time.Second: "1h1m", 25 * time.Hour: "1d1h",
	} {
		if got := short(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

// The JSON of a server that knows more than this build is printed whole.
func TestJSONIsTheServers(t *testing.T) {
	raw := json.RawMessage(`{"processes":[{"generation":1,"news":{"a":1}}],"sockets":[]}`)
	var b bytes.Buffer
	v := view{out: &b, json: true}
	if err := v.show(upgrader.Status{}, raw); err != nil {
		t.Fatal(err)
	}
	golden(t, "status.json", b.String())
}

func TestWatchShowsWhatHasChanged(t *testing.T) {
	sent := map[string]json.RawMessage{"first": json.RawMessage("{\n  \"a\": 1\n}"), "three": json.RawMessage(`{"a":3}`)}
	for name, v := range map[string]view{"watch.txt": {}, "watch.json": {json: true}, "watch-terminal.txt": {terminal: true}} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			v.out, v.now = &b, func() time.Time { return now }
			for _, name := range []string{"first", "first", "three"} {
				if err := v.update(statuses[name], sent[name]); err != nil {
					t.Fatal(err)
				}
			}
			golden(t, name, b.String())
		})
	}
}

func TestWatchEndsWhenNobodyReads(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	v := view{out: w, now: time.Now}
	if err := v.update(statuses["first"], json.RawMessage("{}")); err == nil {
		t.Error("want the error of the write")
	}
}
