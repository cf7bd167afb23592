package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/go-handover/handover/internal/proctest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// asUpgradectl makes the test binary the program.
const asUpgradectl = "RUN_UPGRADECTL"

func TestMain(m *testing.M) {
	if os.Getenv(asUpgradectl) != "" {
		main()
	}
	if err := os.Unsetenv(socketVariable); err != nil {
		panic(err)
	}
	proctest.Dir = filepath.Join("..", "..")
	os.Exit(m.Run())
}

// patience is the limit of everything that is waited for.
const patience = 30 * time.Second

// said is what one run has come to.
type said struct {
	code        int
	out, errors string
}

// runIn runs upgradectl in this process.
func runIn(t *testing.T, args ...string) said {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, errors bytes.Buffer
	code := run(ctx, args, &out, &errors)
	return said{code, out.String(), errors.String()}
}

// want checks the exit code, and that it has said this.
func (s said) want(t *testing.T, code int, texts ...string) {
	t.Helper()
	var wrong []string
	if s.code != code {
		wrong = append(wrong, fmt.Sprintf("exit code %d, want %d", s.code, code))
	}
	for _, text := range texts {
		if !strings.Contains(s.out+s.errors, text) {
			wrong = append(wrong, fmt.Sprintf("it does not say %q", text))
		}
	}
	if wrong != nil {
		t.Errorf("%s\nstdout:\n%s\nstderr:\n%s", strings.Join(wrong, "\n"), s.out, s.errors)
	}
}

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("not as in %s (go test -update writes it anew):\n%s", path, got)
	}
}

func TestWrongUsage(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		text string
	}{
		"no command":       {nil, "no command"},
		"flags alone":      {[]string{"-socket", "/s"}, "no command"},
		"unknown command":  {[]string{"swap"}, `unknown command "swap"`},
		"unknown flag":     {[]string{"status", "-frob"}, "unknown flag: --frob"},
		"no server":        {[]string{"status"}, "want -socket PATH, -pidfile PATH or UPGRADECTL_SOCKET"},
		"empty socket":     {[]string{"status", "-socket", ""}, "-socket is empty: want a path"},
		"empty pidfile":    {[]string{"upgrade", "-pidfile="}, "-pidfile is empty: want a path"},
		"two servers":      {[]string{"upgrade", "-socket", "/s", "-pidfile", "/p"}, "want one of them"},
		"no value":         {[]string{"status", "-socket"}, "flag needs an argument"},
		"no duration":      {[]string{"upgrade", "-socket", "/s", "-timeout", "5"}, "invalid argument \"5\""},
		"no time at all":   {[]string{"upgrade", "-socket", "/s", "-timeout", "0s"}, "-timeout 0s: want a duration above 0"},
		"an argument":      {[]string{"rollback", "now"}, `unexpected argument "now": rollback takes flags only`},
		"status, pidfile":  {[]string{"status", "-pidfile", "/p"}, "status asks the control socket"},
		"confirm, pidfile": {[]string{"confirm", "-pidfile", "/p"}, "confirm asks the control socket"},
		"man":              {[]string{"man"}, "0 arguments: want one, the directory"},
	} {
		t.Run(name, func(t *testing.T) {
			s := runIn(t, test.args...)
			s.want(t, exitUsage, test.text)
			if !strings.Contains(s.errors, test.text) {
				t.Errorf("want it on standard error")
			}
		})
	}
}

func TestLongFlagsMayHaveOneDash(t *testing.T) {
	for _, test := range []struct{ args, want []string }{
		{[]string{"-socket", "/s", "status", "-json"}, []string{"--socket", "/s", "status", "--json"}},
		{[]string{"status", "-watch", "-json=true"}, []string{"status", "--watch", "--json=true"}},
		{[]string{"upgrade", "-no-wait", "-pidfile=/p"}, []string{"upgrade", "--no-wait", "--pidfile=/p"}},
		{[]string{"--socket", "/s", "status", "--json"}, []string{"--socket", "/s", "status", "--json"}},
		{[]string{"-socket", "-json", "-json"}, []string{"--socket", "-json", "--json"}}, // a path like a flag
		{[]string{"-socket=-json", "-json"}, []string{"--socket=-json", "--json"}},
		{[]string{"-h"}, []string{"-h"}},
		{[]string{"-v"}, []string{"-v"}},
		{[]string{"-help"}, []string{"--help"}},
		{[]string{"-version"}, []string{"--version"}},
		{[]string{"-nonsense", "-json"}, []string{"--nonsense", "--json"}},
		{[]string{"-hv"}, []string{"-hv"}}, // two of one letter
		{[]string{"man", "--", "-json"}, []string{"man", "--", "-json"}},
		{[]string{"-", "--", "-"}, []string{"-", "--", "-"}},
		{[]string{"---json"}, []string{"---json"}},
		{[]string{"-socket"}, []string{"--socket"}},
		{[]string{}, []string{}},
	} {
		if got := longFlags(newRoot(io.Discard, io.Discard).Command, test.args); !slices.Equal(got, test.want) {
			t.Errorf("%q: %q, want %q", test.args, got, test.want)
		}
	}
}

func TestVersionAndHelpAreAsked(t *testing.T) {
	for _, args := range [][]string{{"-version"}, {"--version"}, {"-v"}} {
		runIn(t, args...).want(t, exitDone, "upgradectl version")
	}
	for _, args := range [][]string{{"-h"}, {"-help"}, {"help"}, {"status", "-h"}, {"help", "status"}} {
		s := runIn(t, args...)
		s.want(t, exitDone, "Usage:", "Examples:")
		if s.errors != "" {
			t.Errorf("%q: on standard error: %s", args, s.errors)
		}
	}
}

// all calls f for each command.
func all(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		all(sub, f)
	}
}

func TestEachCommandHasAnExample(t *testing.T) {
	seen := 0
	all(newRoot(io.Discard, io.Discard).Command, func(c *cobra.Command) {
		text := c.Example
		if c.Name() == "completion" || c.HasParent() && c.Parent().Name() == "completion" {
			text = c.Long // cobra's own
		}
		if seen++; text == "" || c.Long == "" || c.Short == "" {
			t.Errorf("%s: want a line, a text and an example", c.CommandPath())
		}
		for line := range strings.Lines(c.Long + "\n" + c.Example) {
			if len([]rune(line)) > 92 {
				t.Errorf("%s: too long for a terminal: %s", c.CommandPath(), line)
			}
		}
	})
	if seen < 12 {
		t.Errorf("only %d commands", seen)
	}
}

// The examples are command lines that are understood.
func TestExamplesAreUnderstood(t *testing.T) {
	dir := t.TempDir()
	all(newRoot(io.Discard, io.Discard).Command, func(c *cobra.Command) {
		for line := range strings.Lines(c.Example) {
			if text := strings.TrimSpace(line); text == "" || strings.HasPrefix(text, "#") {
				continue
			}
			_, rest, found := strings.Cut(line, "upgradectl ")
			if i := slices.IndexFunc(keepings, func(k keeping) bool { return k.name == c.Name() }); i >= 0 {
				if found {
					isUnderstood(t, keepings[i], strings.Fields(rest))
				}
				continue
			}
			rest, _, _ = strings.Cut(rest, "|")
			rest, _, _ = strings.Cut(rest, "&")
			args := strings.Fields(strings.ReplaceAll(rest, "/usr/local/share", dir))
			if strings.HasPrefix(strings.TrimSpace(line), socketVariable) {
				args = append([]string{"-socket", "/run/app/control"}, args...)
			}
			if slices.Contains(args, ".") {
				args[len(args)-1] = dir
			}
			if s := runIn(t, args...); s.code == exitUsage || len(args) == 0 {
				t.Errorf("%s: %s%s", c.CommandPath(), line, s.errors)
			}
		}
	})
}

// isUnderstood: that command would take this process over.
func isUnderstood(t *testing.T, k keeping, args []string) {
	t.Helper()
	if _, err := k.parse(args[1:]); err != nil || args[0] != k.name {
		t.Errorf("upgradectl %s: %v", strings.Join(args, " "), err)
	}
}

// TestManPagesAreCurrent: go generate writes them anew.
func TestManPagesAreCurrent(t *testing.T) {
	dir := t.TempDir()
	runIn(t, "man", dir).want(t, exitDone)
	made, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	kept, err := filepath.Glob("man/*")
	if err != nil {
		t.Fatal(err)
	}
	if len(made) != len(kept) || len(made) < 12 {
		t.Errorf("%d pages are kept, %d are made: go generate", len(kept), len(made))
	}
	for _, path := range made {
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("man", filepath.Base(path)))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not current: go generate (%v)", filepath.Base(path), err)
		}
	}
}

// The scripts are run by the shell that they are for, where it is there.
func TestCompletionScriptsAreTakenByTheirShells(t *testing.T) {
	for shell, args := range map[string][]string{"bash": {"-n"}, "zsh": {"-n"}, "fish": {"--no-execute"}} {
		t.Run(shell, func(t *testing.T) {
			s := runIn(t, "completion", shell)
			s.want(t, exitDone, "upgradectl")
			if _, err := exec.LookPath(shell); err != nil {
				t.Logf("not checked by %s: %v", shell, err)
				return
			}
			cmd := exec.CommandContext(t.Context(), shell, args...)
			cmd.Stdin = strings.NewReader(s.out)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestCompletionKnowsCommandsAndFlags(t *testing.T) {
	for last, want := range map[string]string{"st": "status\t", "--so": "--socket\t", "roll": "rollback\t"} {
		runIn(t, "__complete", last).want(t, exitDone, want)
	}
	runIn(t, "__complete", "upgrade", "--no").want(t, exitDone, "--no-wait\t")
}
