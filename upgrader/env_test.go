package upgrader

import (
	"errors"
	"fmt"
	"os/exec"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// lookupIn is os.LookupEnv for a list of variables.
func lookupIn(env []string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for _, kv := range env {
			if key, value, _ := strings.Cut(kv, "="); key == name {
				return value, true
			}
		}
		return "", false
	}
}

// env is what a successor may find, with some variables replaced.
func env(replaced ...string) []string {
	vars := []string{
		envFDs + "=http=5 admin=6", envChannel + "=3", envPIDFile + "=4", envGeneration + "=2", envPredecessor + "=4711",
	}
	for _, kv := range replaced {
		name, value, _ := strings.Cut(kv, "=")
		vars = slices.DeleteFunc(vars, func(s string) bool { return strings.HasPrefix(s, name+"=") })
		if value != "absent" {
			vars = append(vars, kv)
		}
	}
	return vars
}

// oddNames are allowed, each of them.
var oddNames = []string{
	" ", "a b", "a=b", "=", "%", "%41", "+", "&", "a\nb", "\t", "\x00", "-", "5", `"`, "\u0085", "\u00a0", "\u2028",
	"größe", "日本", "\U0001f600", strings.Repeat("x", maxName), strings.Repeat("é", maxName/2),
}

func TestEnvironmentRoundTrip(t *testing.T) {
	odd := environment{channel: 3, generation: 7, predecessor: 1}
	for i, name := range oddNames {
		odd.fds = append(odd.fds, namedFD{name, 4 + i})
	}
	tests := map[string]environment{
		"nothing":   {channel: 3, generation: 2, predecessor: 1},
		"a pidfile": {channel: 3, pidfile: 4, generation: 2, predecessor: 1},
		"sockets":   {channel: 3, pidfile: 4, generation: 1 << 20, predecessor: 1 << 22, fds: []namedFD{{"http", 5}, {"admin", 6}}},
		"odd names": odd,
	}
	for name, e := range tests {
		t.Run(name, func(t *testing.T) {
			vars, err := e.strings()
			if err != nil {
				t.Fatal(err)
			}
			got, ok, err := parseEnv(lookupIn(vars))
			if !ok || err != nil || !reflect.DeepEqual(got, e) {
				t.Errorf("%q is parsed as %+v, %v, %v; want %+v", vars, got, ok, err, e)
			}
		})
	}
}

// TestEnvironmentIsDocumented: the variables are read by operators, and by
// wrappers that are not written in Go.
func TestEnvironmentIsDocumented(t *testing.T) {
	e := environment{channel: 3, pidfile: 4, generation: 2, predecessor: 4711, fds: []namedFD{{"http", 5}, {"my admin", 6}}}
	want := []string{
		"UPGRADER_FDS=http=5 my+admin=6", "UPGRADER_CHANNEL_FD=3", "UPGRADER_GENERATION=2",
		"UPGRADER_PREDECESSOR_PID=4711", "UPGRADER_PIDFILE_FD=4",
	}
	if got, err := e.strings(); err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

// environmentOf returns one whose variable of descriptors has exactly n bytes.
func environmentOf(n int) environment {
	const name = 100
	const pair = name + len("=1000000 ")
	e := environment{channel: 3, generation: 2, predecessor: 1}
	n -= len(envFDs) + len("=") - len(" ") // no blank after the last pair
	for i := range n / pair {
		length := name
		if i == 0 {
			length += n % pair
		}
		e.fds = append(e.fds, namedFD{fmt.Sprintf("%0*d", length, i), 1000000 + i})
	}
	return e
}

func TestTooLongAnEnvironmentNamesTheLimit(t *testing.T) {
	longest := environmentOf(maxEnv - 1)
	vars, err := longest.strings()
	if err != nil || len(vars[0]) != maxEnv-1 {
		t.Fatalf("%v; want a variable of %d bytes", err, maxEnv-1)
	}
	if got, ok, err := parseEnv(lookupIn(vars)); !ok || err != nil || !reflect.DeepEqual(got, longest) {
		t.Errorf("%d names come back as %d: %v, %v", len(longest.fds), len(got.fds), ok, err)
	}
	if _, err := environmentOf(maxEnv).strings(); err == nil || !strings.Contains(err.Error(), "the limit is 131071") {
		t.Errorf("error %v, want one that names the limit", err)
	}
}

// TestLongestVariableIsWhatExecAccepts: the limit is the kernel's, not a guess.
func TestLongestVariableIsWhatExecAccepts(t *testing.T) {
	run := func(n int) error {
		cmd := exec.Command("true")
		cmd.Env = []string{envFDs + "=" + strings.Repeat("x", n-len(envFDs)-1)}
		return cmd.Run()
	}
	if err := run(maxEnv - 1); err != nil {
		t.Errorf("%d bytes: %v", maxEnv-1, err)
	}
	if runtime.GOOS != "linux" {
		return // the others limit the whole only
	}
	if err := run(maxEnv); !errors.Is(err, syscall.E2BIG) {
		t.Errorf("%d bytes: %v, want E2BIG", maxEnv, err)
	}
}

func TestNoVariablesAreNoPredecessor(t *testing.T) {
	e, ok, err := parseEnv(lookupIn([]string{"PATH=/bin", "UPGRADER_FDSX=3"}))
	if ok || err != nil || !reflect.DeepEqual(e, environment{}) {
		t.Errorf("%+v, %v, %v; want nothing", e, ok, err)
	}
}

func TestMalformedVariablesAreRefusedByName(t *testing.T) {
	tests := []struct{ variable, blamed string }{
		{envChannel + "=absent", envChannel},
		{envChannel + "=", envChannel},
		{envChannel + "=x", envChannel},
		{envChannel + "=0", envChannel},
		{envChannel + "=2", envChannel},
		{envChannel + "=-3", envChannel},
		{envChannel + "=3.0", envChannel},
		{envChannel + "=3 ", envChannel},
		{envChannel + "=99999999999999999999", envChannel},
		{envChannel + "=1073741825", envChannel},
		{envPIDFile + "=", envPIDFile},
		{envPIDFile + "=0", envPIDFile},
		{envPIDFile + "=3", envPIDFile}, // the channel
		{envGeneration + "=absent", envGeneration},
		{envGeneration + "=1", envGeneration},
		{envGeneration + "=-1", envGeneration},
		{envGeneration + "=two", envGeneration},
		{envPredecessor + "=absent", envPredecessor},
		{envPredecessor + "=0", envPredecessor},
		{envPredecessor + "=me", envPredecessor},
		{envFDs + "=http", envFDs},
		{envFDs + "=http=", envFDs},
		{envFDs + "=http=x", envFDs},
		{envFDs + "=http=2", envFDs},
		{envFDs + "=http=-5", envFDs},
		{envFDs + "=http=1073741825", envFDs},
		{envFDs + "==5", envFDs},
		{envFDs + "=%zz=5", envFDs},
		{envFDs + "=%ff=5", envFDs}, // not UTF-8
		{envFDs + "=" + strings.Repeat("x", maxName+1) + "=5", envFDs},
		{envFDs + "=a=5 a=6", envFDs},
		{envFDs + "=a=5 b=5", envFDs},
		{envFDs + "=a=3", envFDs}, // the channel
		{envFDs + "=a=4", envFDs}, // the pidfile
	}
	for _, tt := range tests {
		t.Run(tt.variable[:min(len(tt.variable), 40)], func(t *testing.T) {
			e, ok, err := parseEnv(lookupIn(env(tt.variable)))
			if !ok || err == nil || !strings.Contains(err.Error(), tt.blamed) {
				t.Fatalf("%v, %v; want an error that names %s", ok, err, tt.blamed)
			}
			if !reflect.DeepEqual(e, environment{}) {
				t.Errorf("the error comes with %+v", e)
			}
		})
	}
}

// TestEveryMalformedVariableIsTold, not only the first one.
func TestEveryMalformedVariableIsTold(t *testing.T) {
	_, _, err := parseEnv(lookupIn(env(envChannel+"=x", envGeneration+"=x", envPredecessor+"=x", envPIDFile+"=x", envFDs+"=x")))
	for _, name := range envNames {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v does not name %s", err, name)
		}
	}
}

func TestPIDFileVariableIsOptional(t *testing.T) {
	e, ok, err := parseEnv(lookupIn(env(envPIDFile + "=absent")))
	if !ok || err != nil || e.pidfile != 0 {
		t.Errorf("%+v, %v, %v; want no pidfile and no error", e, ok, err)
	}
}

func TestWithoutOursRemovesOurVariablesOnly(t *testing.T) {
	others := []string{"PATH=/bin", "UPGRADER=1", "UPGRADER_FDS_X=1", "X_UPGRADER_FDS=1", "EMPTY=", "nonsense", "", "A=B=C", "upgrader_fds=1"}
	mixed := slices.Concat(others[:3], env(), others[3:], []string{envFDs, envFDs + "=again"})
	got := withoutOurs(mixed)
	if !slices.Equal(got, others) {
		t.Errorf("%q, want %q", got, others)
	}
	if mixed[3] != env()[0] {
		t.Error("the argument was changed")
	}
}

// TestWithoutOursKnowsEveryVariable that the environment is made of.
func TestWithoutOursKnowsEveryVariable(t *testing.T) {
	vars, err := environment{channel: 3, pidfile: 4, generation: 2, predecessor: 1, fds: []namedFD{{"a", 5}}}.strings()
	if err != nil {
		t.Fatal(err)
	}
	if got := withoutOurs(vars); len(got) > 0 || len(vars) != len(envNames) {
		t.Errorf("%d variables, of which %q survive; want %d and none", len(vars), got, len(envNames))
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range oddNames {
		if err := checkName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", strings.Repeat("x", maxName+1), "\xff", "a\xc3"} {
		if err := checkName(name); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v, want ErrName", name, err)
		}
	}
	if err := checkName(strings.Repeat("x", 256)); !strings.Contains(err.Error(), "256 bytes, the limit is 255") {
		t.Errorf("error %q does not name the limit", err)
	}
}

// FuzzParseEnv: nothing makes it panic, and what it accepts means the same when
// it is written again.
func FuzzParseEnv(f *testing.F) {
	f.Add("http=5 admin=6", "3", "4", "2", "4711")
	f.Add("", "3", "", "2", "1")
	f.Add("a+b=5 %25=6  \u00a0=7", "1073741824", "+4", "002", "1")
	f.Add("=5 x= y", "", "x", "-1", "0")
	f.Fuzz(func(t *testing.T, fds, channel, pidfile, generation, predecessor string) {
		vars := []string{
			envFDs + "=" + fds, envChannel + "=" + channel, envGeneration + "=" + generation, envPredecessor + "=" + predecessor,
		}
		if pidfile != "" {
			vars = append(vars, envPIDFile+"="+pidfile)
		}
		e, ok, err := parseEnv(lookupIn(vars))
		if !ok {
			t.Fatal("the variables were not found")
		}
		if err != nil {
			return
		}
		again, err := e.strings()
		if err != nil {
			return // too long: the escaped form is the longer one
		}
		back, ok, err := parseEnv(lookupIn(again))
		if !ok || err != nil || !reflect.DeepEqual(back, e) {
			t.Errorf("%q became %q: %+v, %v; want %+v", vars, again, back, err, e)
		}
	})
}
