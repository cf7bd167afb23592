//go:build linux

package upgrader

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestEveryKindThroughSixGenerations: sockets of every kind and a file arrive
// unchanged, O_NONBLOCK still set, and Close still interrupts Accept.
func TestEveryKindThroughSixGenerations(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.Kinds = true
	s.start()
	kinds := func(from int) record {
		return s.waitAfter(from, "kinds", func(r record) bool { return r.str("msg") == "kinds" })
	}
	first := kinds(0)
	for generation := 2; generation <= 6; generation++ {
		from := s.mark()
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
		r := kinds(from)
		if r.num("generation") != generation {
			t.Fatalf("generation %d, want %d", r.num("generation"), generation)
		}
		for _, name := range []string{"tcp", "unix", "unixpacket", "udp", "unixgram", "file"} {
			if got, want := r.str(name), first.str(name); got != want || got == "" {
				t.Errorf("generation %d: %s is %q, in generation 1 it was %q", generation, name, got, want)
			}
		}
		s.talkToKinds(generation)
	}
	// Every generation said this when it closed its listeners.
	s.signal(s.pidfile(), syscall.SIGTERM)
	s.allGone()
	closed := 0
	for _, line := range s.lines() {
		closed += strings.Count(line, `"msg":"accept ended"`)
	}
	if closed != 6*3 {
		t.Errorf("%d of %d Accepts ended by Close", closed, 6*3)
	}
	for _, name := range []string{"unix.sock", "packet.sock", "gram.sock"} {
		if _, err := os.Lstat(filepath.Join(s.dir, name)); err == nil {
			t.Errorf("%s is left behind", name)
		}
	}
}

// talkToKinds asks each socket which generation reads from it.
func (s *service) talkToKinds(generation int) {
	s.t.Helper()
	want := fmt.Sprint(generation)
	local := filepath.Join(s.dir, fmt.Sprintf("client%d", generation))
	for _, c := range []struct{ network, address string }{
		{"unix", "unix.sock"}, {"unixpacket", "packet.sock"}, {"unixgram", "gram.sock"}, {"udp", s.addr("udp")},
	} {
		var conn net.Conn
		var err error
		switch c.network {
		case "udp":
			conn, err = net.Dial("udp", c.address)
		case "unixgram":
			conn, err = net.DialUnix("unixgram", &net.UnixAddr{Name: local, Net: "unixgram"},
				&net.UnixAddr{Name: filepath.Join(s.dir, c.address), Net: "unixgram"})
		default:
			conn, err = net.Dial(c.network, filepath.Join(s.dir, c.address))
		}
		if err != nil {
			s.t.Fatalf("%s: %v", c.network, err)
		}
		_ = conn.SetDeadline(time.Now().Add(deadline))
		if _, err := conn.Write([]byte("who")); err != nil {
			s.t.Fatalf("%s: %v", c.network, err)
		}
		b := make([]byte, 64)
		n, err := conn.Read(b)
		if err != nil || string(b[:n]) != want {
			s.t.Errorf("%s: answer %q, %v; want %q", c.network, b[:n], err, want)
		}
		_ = conn.Close()
	}
}

// TestConnectionsAreHandedOver: idle connections survive the upgrades that
// their clients do not notice.
func TestConnectionsAreHandedOver(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.Listen = append(s.config.Listen, [3]string{"second", "unix", filepath.Join(s.dir, "second.sock")})
	s.start()
	var conns []net.Conn
	for range 20 {
		c, err := net.Dial("tcp", s.addr("main"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		u, err := net.Dial("unix", filepath.Join(s.dir, "second.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		conns = append(conns, c, u)
	}
	for generation := 1; generation <= 4; generation++ {
		for _, c := range conns {
			if pid, g := s.askOn(c, "who"); g != generation || pid != s.pidfile() {
				t.Fatalf("generation %d, process %d answers on a kept connection, want generation %d", g, pid, generation)
			}
		}
		from := s.mark()
		old := s.pidfile()
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
		s.waitAfter(from, "drained", func(r record) bool { return r.str("msg") == "drained" && r.num("pid") == old })
	}
	for _, line := range s.lines() {
		if strings.Contains(line, `"msg":"kept"`) {
			t.Error(line)
		}
	}
}

// TestConnectionGoesOnPastADrainingGeneration: a connection whose receiver has
// been replaced meanwhile goes on to the next generation.
func TestConnectionGoesOnPastADrainingGeneration(t *testing.T) {
	t.Parallel()
	s := newService(t).start()
	busy, err := net.Dial("tcp", s.addr("main"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	s.askOn(busy, "who") // generation 1 has it
	if _, err := fmt.Fprintln(busy, "sleep 2000"); err != nil {
		t.Fatal(err)
	}
	hold, err := net.Dial("tcp", s.addr("main"))
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	if !s.upgrade() {
		t.Fatal("upgrade failed")
	}
	s.eventually("generation 2 has the other connection", func() bool {
		_, g := s.askOn(hold, "who")
		return g == 2
	})
	if _, err := fmt.Fprintln(hold, "sleep 4000"); err != nil { // keeps generation 2 draining
		t.Fatal(err)
	}
	if !s.upgrade() {
		t.Fatal("upgrade failed")
	}
	_ = busy.SetDeadline(time.Now().Add(deadline))
	r := bufio.NewReader(busy)
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if _, g := s.askOn(busy, "who"); g != 3 {
		t.Errorf("generation %d has the connection, want 3", g)
	}
}

// TestSuccessorAtItsLimitRefuses: a successor without a free descriptor says
// no, and the predecessor keeps the connection and serves it.
func TestSuccessorAtItsLimitRefuses(t *testing.T) {
	t.Parallel()
	s := newService(t).start()
	var conns []net.Conn
	for range 40 {
		c, err := net.Dial("tcp", s.addr("main"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s.askOn(c, "who")
		conns = append(conns, c)
	}
	s.config.Faults = []fault{{2, "ran 0s", "fill descriptors"}}
	from := s.mark()
	if !s.upgrade() {
		t.Fatal("upgrade failed")
	}
	s.waitAfter(from, "refusal", func(r record) bool {
		return r.str("msg") == "kept" && strings.Contains(r.str("err"), "refused")
	})
	for _, c := range conns {
		s.askOn(c, "who") // somebody answers on every one
	}
}

// TestThirdGenerationWhileTheFirstDrains: a hotfix does not wait for old
// requests, and they complete.
func TestThirdGenerationWhileTheFirstDrains(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.Max = 10
	s.start()
	var wg sync.WaitGroup
	for generation := 1; generation <= 4; generation++ {
		c, err := net.Dial("tcp", s.addr("main"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s.askOn(c, "who")
		if _, err := fmt.Fprintln(c, "sleep 5000"); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			_ = c.SetDeadline(time.Now().Add(deadline))
			answer, err := bufio.NewReader(c).ReadString('\n')
			if err != nil || !strings.Contains(answer, fmt.Sprintf(" %d sleep", generation)) {
				t.Errorf("the request in generation %d: %q, %v", generation, answer, err)
			}
		})
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
	}
	wg.Wait()
}

// TestOldestGenerationIsToldToHurry: one more than MaxDraining, and the oldest
// cuts its drain short, and is ended if it does not.
func TestOldestGenerationIsToldToHurry(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.Max = 1
	s.start()
	first := s.pidfile()
	for range 2 {
		c, err := net.Dial("tcp", s.addr("main"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s.askOn(c, "who")
		if _, err := fmt.Fprintln(c, "sleep 20000"); err != nil {
			t.Fatal(err)
		}
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
	}
	s.waitFor("hurry", func(r record) bool { return r.str("msg") == "hurried" && r.num("pid") == first })
	s.gone(first)
}

// TestHurryReachesPastADrainedGeneration: the word goes down the line although
// the generations in between have nothing left to do.
func TestHurryReachesPastADrainedGeneration(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.Max = 2
	s.start()
	first := s.pidfile()
	c, err := net.Dial("tcp", s.addr("main"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s.askOn(c, "who")
	if _, err := fmt.Fprintln(c, "sleep 20000"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
	}
	s.waitFor("hurry", func(r record) bool { return r.str("msg") == "hurried" && r.num("pid") == first })
	s.gone(first)
}

// TestConnectionPassesADrainedGeneration: an idle connection of the first
// generation reaches the third although the second has drained.
func TestConnectionPassesADrainedGeneration(t *testing.T) {
	t.Parallel()
	s := newService(t).start()
	busy, err := net.Dial("tcp", s.addr("main"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	s.askOn(busy, "who")
	if _, err := fmt.Fprintln(busy, "sleep 4000"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
	}
	_ = busy.SetDeadline(time.Now().Add(deadline))
	if _, err := bufio.NewReader(busy).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if _, g := s.askOn(busy, "who"); g != 3 {
		t.Errorf("generation %d has the connection, want 3", g)
	}
}

// TestStormOfSignalsStartsOneAttempt: 20 triggers 2 ms apart are one upgrade.
func TestStormOfSignalsStartsOneAttempt(t *testing.T) {
	t.Parallel()
	s := newService(t).start()
	old := s.pidfile()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for range 20 {
		s.signal(old, syscall.SIGUSR1)
		<-tick.C
	}
	s.waitFor("drain", moved(old, "draining"))
	r := s.waitFor("successor", func(r record) bool { return moved(0, "serving")(r) && r.num("pid") != old })
	s.serves(r.num("pid"), 2)
	if n := len(s.pids); n != 2 {
		t.Errorf("%d processes ran, want 2", n)
	}
}

// TestNothingLeaksIntoSubprocesses: whatever any generation starts at any
// time after New sees no descriptor and no variable of ours.
func TestNothingLeaksIntoSubprocesses(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.Spawn, s.config.Kinds = true, true
	s.start()
	for range 3 {
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
	}
	var looked []string
	for _, r := range s.all() {
		if r.str("msg") != "subprocess" {
			continue
		}
		looked = append(looked, fmt.Sprintf("%d %s", r.num("generation"), r.str("point")))
		if r.str("fds") != "" || r.str("env") != "" || r.num("grandchild") != 1 {
			t.Errorf("a subprocess of generation %d at %q sees descriptors %q, variables %q, and is generation %d",
				r.num("generation"), r.str("point"), r.str("fds"), r.str("env"), r.num("grandchild"))
		}
	}
	for _, want := range []string{"1 started", "1 committed", "1 probation", "2 new", "2 listen", "2 serving", "2 probation", "4 ran 0s"} {
		if !slices.Contains(looked, want) {
			t.Errorf("no subprocess looked at %q, only at %q", want, looked)
		}
	}
}

// TestSocketDroppedAddedMoved: a new version may change its sockets.
func TestSocketDroppedAddedMoved(t *testing.T) {
	t.Parallel()
	s := newService(t)
	sock := filepath.Join(s.dir, "a.sock")
	s.config.Listen = append(s.config.Listen, [3]string{"dropped", "unix", sock}, [3]string{"moved", "tcp", "127.0.0.1:0"})
	s.start()
	was := s.addr("moved")

	// Named alike but bound by another name: the clash names what is unclaimed.
	s.config.Listen[2] = [3]string{"renamed", "tcp", was}
	from := s.mark()
	if s.upgrade() {
		t.Fatal("upgraded")
	}
	text := s.waitAfter(from, "verdict", func(r record) bool { return r.str("from") == "upgrading" && r.str("to") == "serving" }).str("err")
	if !strings.Contains(text, `"moved" (tcp `+was+`)`) {
		t.Errorf("the log says %q, want it to name the unclaimed socket", text)
	}

	s.config.Listen = [][3]string{s.config.Listen[0], {"moved", "tcp", "localhost:0"}, {"added", "tcp", "127.0.0.1:0"}}
	from = s.mark()
	if !s.upgrade() {
		t.Fatal("upgrade failed")
	}
	// Another request, and an address that fits what is bound: it is kept.
	listening := func(name string) string {
		return s.waitAfter(from, name, func(r record) bool { return r.str("msg") == "listening" && r.str("name") == name }).str("addr")
	}
	if got := listening("moved"); got != was {
		t.Errorf("localhost:0 is %s, want it to keep %s", got, was)
	}
	if c, err := net.Dial("tcp", listening("added")); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
	s.eventually("the path of a socket that was dropped is removed", func() bool {
		_, err := os.Lstat(sock)
		return err != nil
	})

	s.config.Listen = [][3]string{s.config.Listen[0], {"moved", "tcp", "127.0.0.2:0"}}
	from = s.mark()
	old := s.pidfile()
	if !s.upgrade() {
		t.Fatal("upgrade failed")
	}
	now := listening("moved")
	if now == was || !strings.HasPrefix(now, "127.0.0.2:") {
		t.Errorf("moved to %s", now)
	}
	s.gone(old)
	s.eventually("the socket that moved is closed", func() bool {
		c, err := net.Dial("tcp", was)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
}

// TestThousandListeners: a service with 1,000 listeners and 1,000 files.
func TestThousandListeners(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.config.Many = 1000
	s.start()
	for generation := 2; generation <= 3; generation++ {
		from := s.mark()
		if !s.upgrade() {
			t.Fatal("upgrade failed")
		}
		r := s.waitAfter(from, "many", func(r record) bool { return r.str("msg") == "many" })
		if r.num("listeners") != 1000 || r.num("files") != 1000 || r.num("same") != 2000 {
			t.Errorf("generation %d: %v", generation, r)
		}
	}
}

// TestDescriptorLimitIsNamed: a process at RLIMIT_NOFILE cannot be upgraded,
// says why, and serves on.
func TestDescriptorLimitIsNamed(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.start()
	old, from := s.pidfile(), s.mark()
	s.config.Faults = []fault{{1, "prepare", "fill descriptors"}}
	if s.upgrade() {
		t.Fatal("upgraded")
	}
	text := s.waitAfter(from, "verdict", moved(old, "serving")).str("err")
	if !strings.Contains(text, "RLIMIT_NOFILE is 256") {
		t.Errorf("the log says %q, want the limit named", text)
	}
	s.config.Faults = []fault{{1, "prepare", "free descriptors"}}
	if !s.upgrade() {
		t.Fatal("the next upgrade failed")
	}
}
