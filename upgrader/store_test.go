//go:build unix

package upgrader

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-handover/handover/internal/wire"
)

func TestParseActivation(t *testing.T) {
	for _, test := range []struct {
		name string
		env  []string
		want []string
		err  string
	}{
		{"none", nil, nil, ""},
		{"for another process", []string{"LISTEN_PID=8", "LISTEN_FDS=2"}, nil, ""},
		{"without a pid", []string{"LISTEN_FDS=2"}, nil, ""},
		{"named", []string{"LISTEN_PID=7", "LISTEN_FDS=2", "LISTEN_FDNAMES=http:admin"}, []string{"http", "admin"}, ""},
		{"without names", []string{"LISTEN_PID=7", "LISTEN_FDS=2"}, []string{"unknown", "unknown"}, ""},
		{"one without a name", []string{"LISTEN_PID=7", "LISTEN_FDS=2", "LISTEN_FDNAMES=http:"}, []string{"http", "unknown"}, ""},
		{"none at all", []string{"LISTEN_PID=7", "LISTEN_FDS=0", "LISTEN_FDNAMES="}, []string{}, ""},
		{"not a number", []string{"LISTEN_PID=7", "LISTEN_FDS=two"}, nil, `LISTEN_FDS="two": want a number`},
		{"negative", []string{"LISTEN_PID=7", "LISTEN_FDS=-1"}, nil, "want a number"},
		{"too few names", []string{"LISTEN_PID=7", "LISTEN_FDS=2", "LISTEN_FDNAMES=http"}, nil, "want 2 names"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, err := parseActivation(lookupIn(test.env), 7)
			if test.err != "" {
				wantText(t, err, test.err)
				return
			}
			must(t, err)
			if !slices.Equal(a.names, test.want) || (a.names == nil) != (test.want == nil) {
				t.Errorf("%q, want %q", a.names, test.want)
			}
		})
	}
}

// Whatever the socket is called, the manager can keep its name: printable ASCII
// without a colon, as systemd has it.
func FuzzStoredName(f *testing.F) {
	f.Add("http", "tcp", ":0", "", uint64(0))
	f.Add("a:b c%", "unix", "/run/x y", "/run/x y", uint64(7))
	f.Add("ä\x00\n", "tcp6", "[::1]:80", "", uint64(1))
	f.Fuzz(func(t *testing.T, name, network, requested, path string, ino uint64) {
		if checkName(name) != nil {
			t.Skip()
		}
		s := wire.Socket{Name: name, Kind: kindListener, Network: network, Requested: requested}
		if ino != 0 {
			s.Address, s.Dev, s.Ino = path, 5, ino
		}
		stored := storedName(s)
		if strings.ContainsFunc(stored, func(r rune) bool { return r < ' ' || r > '~' || r == ':' }) {
			t.Fatalf("%q", stored)
		}
		got, ok := parseStored(stored)
		if !ok || got != s {
			t.Fatalf("%+v, %v; want %+v", got, ok, s)
		}
	})
}

func TestNameOfAManagerIsNotStored(t *testing.T) {
	for _, name := range []string{"", "http", "upgrader", "upgrader?", "upgrader?name=", "upgrader?%zz"} {
		if s, ok := parseStored(name); ok {
			t.Errorf("%q: %+v", name, s)
		}
	}
}
