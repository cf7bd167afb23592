//go:build unix

package main

import (
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/go-handover/handover/examples/internal/exampletest"
)

// scrape returns the metrics, on a connection of its own.
func scrape(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v\n%s", resp.Status, err, body)
	}
	return string(body)
}

func has(t *testing.T, metrics string, lines ...string) {
	t.Helper()
	for _, want := range lines {
		if !strings.Contains("\n"+metrics, "\n"+want+"\n") {
			t.Errorf("no line %q in\n%s", want, metrics)
		}
	}
}

// An upgrade does not set the counters back, and neither does a failed one.
func TestCountersGoOnFromGenerationToGeneration(t *testing.T) {
	s := exampletest.Start(t, "prometheus")
	url := "http://" + s.Addr()
	has(t, scrape(t, url+"/metrics"),
		"handover_generation 1", `handover_upgrades_total{result="upgraded"} 0`, `handover_processes{state="serving"} 1`,
		`handover_connections{generation="1"} 1`)
	s.Upgrade()
	good, err := os.ReadFile(s.Path)
	if err != nil {
		t.Fatal(err)
	}
	bad := s.Path + ".bad"
	if err := os.WriteFile(bad, []byte("#!/bin/sh\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.Replace(bad)
	if v := s.TryUpgrade(); v.To != "serving" {
		t.Fatalf("verdict %s", v.Line)
	}
	has(t, scrape(t, url+"/metrics"), `handover_upgrades_total{result="failed"} 1`)
	if err := os.WriteFile(bad, good, 0o755); err != nil {
		t.Fatal(err)
	}
	s.Replace(bad)
	s.Upgrade()
	has(t, scrape(t, url+"/metrics"),
		"handover_generation 3", `handover_upgrades_total{result="upgraded"} 2`, `handover_upgrades_total{result="failed"} 1`,
		`handover_upgrades_total{result="rolled back"} 0`, "handover_killed_total 0")
	if vars := scrape(t, url+"/debug/vars"); !strings.Contains(vars, `"counters":{"upgrades":2,"failures":1,"rollbacks":0,"killed":0}`) {
		t.Errorf("expvar: %s", vars)
	}
	s.Drained(s.First.Pid)
}
