package proctest

import (
	"fmt"
	"os"
	"testing"

	"github.com/go-handover/handover/internal/proctest/link"
)

func TestSuccessorIsWhereTheServerIs(t *testing.T) {
	l := link.New(t, 0)
	s := StartIn(t, l.Servers, Demo(t, "v1"), "-listen", l.Servers.Addr.String()+":0", "-probation", "100ms")
	network := func(pid int) string {
		name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	var want string
	if err := l.Servers.Do(func() (err error) {
		want, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if got := network(s.PID()); got != want || got == network(os.Getpid()) {
		t.Errorf("the server is in %s, want %s", got, want)
	}
	if got := network(s.Upgrade()); got != want {
		t.Errorf("its successor is in %s, want %s", got, want)
	}
}
