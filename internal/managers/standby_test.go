//go:build linux

package managers

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
)

// pair is contrib/systemd/standby@.service, twice.
type pair struct {
	*service
	t     *testing.T
	units [2]*unit // the one that serves, and the one that stands by
}

// openPair starts both.
func (d *systemd) openPair(t *testing.T) *pair {
	t.Helper()
	h := newHome(t)
	name := fmt.Sprintf("standby-%d", d.units.Add(1))
	d.put(t, name+"@.service", h.contrib("systemd/standby@.service"),
		fmt.Sprintf(drop, h.dir, strings.Join(h.flags("-probation 300ms"), " "), "WatchdogSec=2"))
	both := &unit{systemd: d, t: t, name: name}
	p := &pair{service: &service{Server: both.log(h), home: h, init: func() int { return d.init }}, t: t}
	d.systemctl(t, "daemon-reload")
	for i := range p.units {
		p.units[i] = &unit{systemd: d, t: t, name: name + "@" + strconv.Itoa(i+1), s: p.service}
		t.Cleanup(p.units[i].end)
		p.units[i].start()
	}
	p.Wait(proctest.Logged("standby is ready"))
	return p
}

// watched waits until systemd has heard three times more that both are alive.
func (p *pair) watched() {
	p.t.Helper()
	for _, u := range p.units {
		for range 3 {
			last := u.show("WatchdogTimestampMonotonic")
			until(p.t, u.name+" says that it is alive", func() bool { return u.show("WatchdogTimestampMonotonic") != last })
		}
		if n := u.number("NRestarts"); n != 0 {
			p.t.Errorf("%s was restarted %d times", u.name, n)
		}
	}
}

// swapped asserts that the unit that stood by serves, waits until the other one
// stands by, and returns when.
func (p *pair) swapped(since proctest.Event) proctest.Event {
	p.t.Helper()
	p.units[0], p.units[1] = p.units[1], p.units[0]
	now := p.After(since, proctest.Logged("standby is ready"))
	for i, status := range []string{"serving, ", "standing by "} {
		until(p.t, p.units[i].name+" is "+status, func() bool { return strings.HasPrefix(p.units[i].show("StatusText"), status) })
	}
	if got, want := p.units[0].number("MainPID"), p.PID(); got != want {
		p.t.Errorf("systemd watches process %d of the unit that serves, the pidfile names %d", got, want)
	}
	return now
}

// hotStandby promotes one unit, kills it, deploys, and stops both. Nobody is refused.
func hotStandby(t *testing.T, d *systemd) {
	t.Helper()
	p := d.openPair(t)
	p.watched()
	l, end := p.under()
	now := p.Now()
	answered := p.slow(5 * time.Second) // by a process that drains for longer than WatchdogSec=
	d.systemctl(t, "reload", p.units[0].name)
	answered()
	now = p.swapped(now)
	l.WaitFor(p.PID())

	from := time.Now()
	p.kill(p.PID(), syscall.SIGKILL)
	now = p.swapped(now)
	l.WaitFor(p.PID())
	cutUntilNow(l, from)

	p.install("app", demo(t, "v2"))
	d.systemctl(t, "restart", p.units[1].name)
	now = p.After(now, proctest.Logged("standby is ready"))
	d.systemctl(t, "reload", p.units[0].name)
	p.swapped(now)
	if said := p.answers(); !strings.Contains(said, "version=v2") {
		t.Errorf("deployed, and the answer is %q", said)
	}
	end()

	d.systemctl(t, "stop", p.units[0].name, p.units[1].name)
	for _, u := range p.units {
		if state, result := u.show("ActiveState"), u.show("Result"); state != "inactive" || result != "success" {
			t.Errorf("%s is %s, the result of the stop is %s", u.name, state, result)
		}
	}
	if pids := p.running(); len(pids) > 0 {
		t.Errorf("left running: %v", pids)
	}
}
