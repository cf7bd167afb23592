package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/go-handover/handover/internal/proctest/load"
	"github.com/go-handover/handover/internal/site"
)

// output is a file, as run wants it, and what was written to it.
func output(t *testing.T) (*os.File, func() string) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, func() string {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

func TestTableAndResult(t *testing.T) {
	s := httptest.NewServer(site.Handler(1, "v1"))
	defer s.Close()
	out, printed := output(t)
	if err := run([]string{"-target", s.URL, "-clients", "get=2,post=1", "-requests", "30"}, nil, out, out); err != nil {
		t.Error(err)
	}
	if got := printed(); !strings.Contains(got, "total  3        30       0") {
		t.Errorf("no total of 30 requests in\n%s", got)
	}

	out, printed = output(t)
	err := run([]string{"-target", "unix:" + filepath.Join(t.TempDir(), "gone"), "-clients", "get=1", "-requests", "3"}, nil, out, out)
	if !errors.Is(err, errLost) || !strings.Contains(printed(), "3 refused: ") {
		t.Errorf("%v, and\n%s", err, printed())
	}
}

func TestReportAsJSON(t *testing.T) {
	s := httptest.NewServer(site.Handler(1, "v1"))
	defer s.Close()
	out, printed := output(t)
	if err := run([]string{"-target", s.URL, "-clients", "get=2,post=1", "-requests", "30", "-json"}, nil, out, out); err != nil {
		t.Error(err)
	}
	var r load.Report
	if err := json.Unmarshal([]byte(printed()), &r); err != nil {
		t.Fatal(err, printed())
	}
	if r.Target != s.URL || r.Total.Requests != 30 || r.Total.Failed != 0 || len(r.Kinds) != 2 || r.Kinds[0].Dials != 2 ||
		r.Total.Steady.N != 30 || r.Total.Steady.P99 == 0 || len(r.Processes) != 1 || r.Processes[0].Generation != 1 {
		t.Errorf("got %+v", r)
	}
}

func TestCommands(t *testing.T) {
	s := httptest.NewServer(site.Handler(1, "v1"))
	defer s.Close()
	out, printed := output(t)
	in, commands := io.Pipe()
	go func() {
		io.WriteString(commands, "mark\nsay upgrade 1\ncrashed\nmark\n")
		for !strings.Contains(printed(), "answers") {
			runtime.Gosched()
		}
		commands.Close()
	}()
	if err := run([]string{"-target", s.URL, "-commands"}, in, out, out); err != nil {
		t.Error(err)
	}
	if got := printed(); !strings.Contains(got, "around 2 marks") || strings.Count(got, "generation 1 answers\n") != 1 {
		t.Errorf("the load ignores commands, does not say who answers, or does not end:\n%s", got)
	}
}

func TestWrongUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"-target", "x"}, {"-clients", "get"}, {"-clients", "got=1"}, {"-target", "unix:x", "more"}, {"-bogus"},
	} {
		out, _ := output(t)
		if err := run(args, new(bytes.Buffer), out, out); err == nil || errors.Is(err, errLost) {
			t.Errorf("run(%q) returns %v", args, err)
		}
	}
}

func TestUsageListsEachKind(t *testing.T) {
	out, printed := output(t)
	if err := run([]string{"-h"}, nil, out, out); err != nil {
		t.Error(err)
	}
	for _, k := range load.Kinds {
		if !strings.Contains(printed(), "\n  "+string(k)+" ") {
			t.Errorf("no %s in\n%s", k, printed())
		}
	}
}

// Each kind can be asked for by its name.
func TestEachKindRuns(t *testing.T) {
	s := httptest.NewUnstartedServer(site.Handler(1, "v1"))
	s.Config.Protocols = site.Protocols()
	s.Start()
	defer s.Close()
	var clients []string
	for _, k := range load.Kinds {
		clients = append(clients, string(k)+"=1")
	}
	out, printed := output(t)
	args := []string{"-target", s.URL, "-clients", strings.Join(clients, ","), "-duration", "100ms", "-hold", "20ms"}
	if err := run(args, nil, out, out); err != nil {
		t.Errorf("%v\n%s", err, printed())
	}
	for _, k := range load.Kinds {
		if !strings.Contains(printed(), " "+string(k)+" ") {
			t.Errorf("no %s in\n%s", k, printed())
		}
	}
}
