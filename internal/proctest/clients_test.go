//go:build unix

package proctest

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestClientsReportWhatBecameOfTheirRequests(t *testing.T) {
	s := Start(t, Demo(t, "v1"))
	loadgen := Build(t, LoadgenPackage)
	c := StartClients(t, nil, loadgen, "-target", s.Target("http-0"), "-clients", "get=2")
	lost := StartClients(t, nil, loadgen, "-target", "unix:"+filepath.Join(t.TempDir(), "gone"), "-clients", "get=1", "-requests", "3")
	c.Busy()
	c.AnsweredBy(1)
	c.Mark()
	c.Finish()
	r := c.Report()
	if r.Total.Clients != 2 || r.Total.Steady.N == 0 || r.Total.Failed != 0 || r.Marks != 1 {
		t.Errorf("the report says\n%s", r)
	}
	lost.Finish()
	if r := lost.Report(); r.Total.Failed != 3 {
		t.Errorf("3 requests to nobody are\n%s", r)
	}
}

func TestClientsThatCannotBeginFailTheTest(t *testing.T) {
	j := &judge{TB: t}
	c := StartClients(j, nil, Build(t, LoadgenPackage), "-target", "nowhere")
	for name, call := range map[string]func(){"Busy": c.Busy, "AnsweredBy": func() { c.AnsweredBy(1) }, "Report": func() { c.Report() }} {
		j.said = nil
		returned := make(chan struct{})
		go func() {
			defer close(returned)
			call()
		}()
		<-returned
		if len(j.said) != 1 || !strings.Contains(j.said[0], `target "nowhere"`) {
			t.Errorf("%s: the test is told %q", name, j.said)
		}
	}
}
