package wire

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "write the golden files; see testdata/README")

// golden has one value of each message.
var golden = []Message{
	Hello{Version: 1, PID: 4711, Build: "v1.2.3"},
	Manifest{
		Version:      1,
		Generation:   2,
		PIDFile:      "/run/app.pid",
		Probation:    5 * time.Second,
		DrainTimeout: time.Minute,
		Sockets: []Socket{
			{Name: "http", Kind: "listener", Network: "tcp", Requested: "localhost:0", Address: "127.0.0.1:40123"},
			{Name: "admin", Kind: "listener", Network: "unix", Requested: "app.sock", Address: "app.sock", Dev: 1 << 40, Ino: 1<<64 - 1},
			{Name: "dns", Kind: "packet", Network: "udp", Requested: "[::1]:53", Address: "[::1]:53"},
			{Name: "log", Kind: "file"},
		},
	},
	Progress{Text: "warming up: 10 %\n<cache> “half” full"},
	Ready{},
	Failed{Text: "open /etc/app.conf: no such file or directory"},
	Commit{},
	Abort{Reason: "not ready within 1m0s"},
	Serving{},
	Confirm{},
	Stopping{},
	Hurry{Generation: 3},
	Descriptors{Count: 253},
	Received{Count: 506},
	Locks{PIDFile: true, Turn: true, Generation: 3, Counters: Counters{Upgrades: 1}},
	Moved{},
	Connection{ID: 1<<64 - 1, Listener: "http"},
	Taken{ID: 7},
	Refused{ID: 8, Reason: "no listener named http"},
	Delta{States: []State{{Name: "cache", Size: 4096}, {Name: "größe = 1", Size: 1 << 40, Sum: 1<<32 - 1}}},
	Draining{Processes: []Process{
		{Generation: 2, PID: 4712, Build: "v1.2.3 0a1b2c3", State: "draining", Since: moment, Connections: new(int), Deadline: moment.Add(time.Minute)},
		{Generation: 1, PID: 4711, State: "draining", Since: moment},
	}},
	Request{Version: 1, Verb: VerbStatus},
	Notice{Event: json.RawMessage(`{"kind":"phase"}`)},
	Answer{Result: ResultRolledBack, Text: "upgrader: probation: it ended", Status: json.RawMessage(`{"counters":{}}`)},
}

var moment = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

// grown has messages with fields that came later, by the name of their file.
var grown = map[string]Message{
	"manifest-counters": Manifest{Version: 1, Generation: 3, Build: "v1.2.3 0a1b2c3", Counters: Counters{Upgrades: 1, Failures: 2, Rollbacks: 3, Killed: 4}},
	"hello-take-over":   Hello{Version: 1, PID: 4711, Build: "v1.2.3", Standby: true, Managed: true, Again: true},
	"manifest-pid":      Manifest{Version: 1, Generation: 2, PID: 4711},
	"confirm-elapsed":   Confirm{Elapsed: 5 * time.Second},
	"manifest-state": Manifest{Version: 1, Generation: 2, Sockets: []Socket{
		{Name: ".state.cache", Kind: "file", State: &State{Name: "cache", Size: 1 << 40, Sum: 7, Delta: true}},
		{Name: ".state.empty", Kind: "file", State: &State{Name: "empty"}},
	}},
	"ready-deltas": Ready{Deltas: true},
}

// files are all messages by the name of their file.
func files() map[string]Message {
	all := maps.Clone(grown)
	for _, m := range golden {
		all[m.kind()] = m
	}
	return all
}

func TestMessagesAreWhatWasReleased(t *testing.T) {
	for name, m := range files() {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", "v1", name+".json")
			got, err := encode(m)
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("encode(%#v)\n got %s\nwant %s", m, got, want)
			}
			back, err := decode(want)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(back, m) {
				t.Errorf("decode(%s)\n got %#v\nwant %#v", want, back, m)
			}
		})
	}
}

func TestEachGoldenFileHasItsMessage(t *testing.T) {
	there, err := filepath.Glob("testdata/v1/*.json")
	if err != nil || len(there) != len(files()) {
		t.Errorf("%d golden files, %d messages, error %v", len(there), len(files()), err)
	}
}

func TestDecodeAcceptsGrowth(t *testing.T) {
	for text, want := range map[string]Message{
		`{"type":"ready","body":{"since":"later versions"}}`:          Ready{},
		`{"type":"hurry","body":{"generation":3,"why":"x"},"seq":12}`: Hurry{Generation: 3},
		`{"type":"hurry","body":{}}`:                                  Hurry{},
		`{"type":"hurry","body":null}`:                                Hurry{},
		`{"type":"hurry"}`:                                            Hurry{},
		" {\"type\": \"ready\"}\n":                                    Ready{},
	} {
		if got, err := decode([]byte(text)); err != nil || got != want {
			t.Errorf("decode(%s) = %#v, %v; want %#v", text, got, err, want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for text, want := range map[string]string{
		``:                                    `expected {"type":…,"body":{…}}`,
		`ready`:                               `message "ready": expected {"type"`,
		`["ready"]`:                           `expected {"type"`,
		`{"type":7}`:                          `expected {"type"`,
		`{"type":"ready"}{"type":"ready"}`:    `expected {"type"`,
		`{"type":"hurry","body":{"gen`:        `expected {"type"`,
		`{"type":"hurry","body":[]}`:          `hurry message: json`,
		`{"type":"taken","body":{"id":-1}}`:   `taken message: json`,
		`{"type":"hello","body":{"pid":"1"}}`: `hello message: json`,
	} {
		if m, err := decode([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("decode(%s) = %#v, %v; want an error with %s", text, m, err, want)
		}
	}
}

func TestDecodeNamesAnUnknownType(t *testing.T) {
	for text, want := range map[string]string{
		`{"type":"teleport","body":{"to":"mars"}}`: "teleport",
		`{"body":{}}`: "",
		`null`:        "",
	} {
		_, err := decode([]byte(text))
		var unknown *UnknownTypeError
		if !errors.As(err, &unknown) || unknown.Type != want {
			t.Errorf("decode(%s) = %v; want unknown type %q", text, err, want)
		}
	}
}

func TestManifestOf2000SocketsFitsAFrame(t *testing.T) {
	b, err := frame(manifestOf(2000))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d bytes", len(b), MaxFrame)
}

func manifestOf(sockets int) Manifest {
	m := Manifest{Version: Version, Generation: 1 << 30, PIDFile: strings.Repeat("p", 4095)}
	for i := range sockets {
		address := fmt.Sprintf("[2001:db8:1234:5678:9abc:def0:1234:5678]:%d", 10000+i)
		m.Sockets = append(m.Sockets, Socket{
			Name:      fmt.Sprintf("%0255d", i),
			Kind:      "listener",
			Network:   "tcp",
			Requested: address,
			Address:   address,
		})
	}
	return m
}

func TestFrameRefusesWhatDoesNotFit(t *testing.T) {
	b, err := frame(manifestOf(4000))
	if err == nil || !strings.Contains(err.Error(), "at most 1048576 fit a frame") {
		t.Errorf("frame of %d bytes, error %v", len(b), err)
	}
}

func TestLongTextsAreCut(t *testing.T) {
	for name, text := range map[string]string{
		"ascii":   strings.Repeat("x", 1<<20),
		"escapes": strings.Repeat("\x00", 1<<20),
		"runes 2": "x" + strings.Repeat("é", 1<<20),
		"runes 4": "xyz" + strings.Repeat("😀", 1<<18),
	} {
		t.Run(name, func(t *testing.T) {
			for _, m := range []Message{Progress{text}, Failed{text}, Abort{text}, Refused{7, text}} {
				checkCut(t, m, text)
			}
		})
	}
}

func checkCut(t *testing.T, m Message, text string) {
	t.Helper()
	b, err := frame(m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decode(b[4:])
	if err != nil {
		t.Fatal(err)
	}
	s := textOf(got)
	if len(s) > maxText || len(s) <= maxText-utf8.UTFMax || !strings.HasPrefix(text, s) || !utf8.ValidString(s) {
		t.Errorf("%s: %d bytes arrived, ending in %q", m.kind(), len(s), s[len(s)-8:])
	}
}

func textOf(m Message) string {
	switch m := m.(type) {
	case Progress:
		return m.Text
	case Failed:
		return m.Text
	case Abort:
		return m.Reason
	case Refused:
		return m.Reason
	default:
		return ""
	}
}

func TestShortTextsAreNotCut(t *testing.T) {
	for _, s := range []string{"", "x", strings.Repeat("x", maxText), strings.Repeat("é", maxText/2)} {
		if cut(s) != s {
			t.Errorf("a text of %d bytes was cut to %d", len(s), len(cut(s)))
		}
	}
}

// Bytes that are no UTF-8 at all must not be cut to nothing, nor run away.
func TestCutOfInvalidUTF8(t *testing.T) {
	if got := cut(strings.Repeat("\x80", maxText+1)); len(got) < maxText-utf8.UTFMax {
		t.Errorf("%d bytes are left", len(got))
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range golden {
		text, err := encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"type":"teleport"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := decode(text)
		if err != nil {
			return
		}
		if _, err := json.Marshal(m); err != nil {
			t.Fatalf("%#v was decoded, but cannot be encoded: %v", m, err)
		}
		first := reencode(t, m)
		if again := reencode(t, first); !reflect.DeepEqual(first, again) {
			t.Fatalf("%#v became %#v", first, again)
		}
	})
}

// reencode sends m through its JSON.
func reencode(t *testing.T, m Message) Message {
	t.Helper()
	text, err := encode(m)
	if err != nil {
		t.Fatal(err)
	}
	back, err := decode(text)
	if err != nil {
		t.Fatal(err)
	}
	return back
}
