//go:build linux

package bench

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-handover/handover/internal/proctest"
)

// patience is the limit of one measurement.
const patience = 30 * time.Second

// pause is what the client waits between two connections. Without it, client
// and old process would occupy two cores, and the figure would be the new
// process's wait for one.
const pause = 100 * time.Microsecond

// firstAnswer opens one connection after the other until a process answers
// that is not the old one. It returns the pid of that process, and when it was.
func firstAnswer(b *testing.B, address string, old int) (pid int, at time.Time) {
	b.Helper()
	limit := time.Now().Add(patience)
	for time.Now().Before(limit) {
		pid, err := ask(address)
		if err == nil && pid != old {
			return pid, time.Now()
		}
		_ = syscall.Nanosleep(&syscall.Timespec{Nsec: int64(pause)}, nil) // time.Sleep rounds up to 1 ms
	}
	b.Fatalf("in %v nobody but process %d has answered", patience, old)
	return 0, limit
}

// ask returns the pid of the process that answers.
func ask(address string) (pid int, err error) {
	answer, err := get(address, "/")
	if err != nil {
		return 0, err
	}
	_, text, _ := bytes.Cut(answer, []byte("pid="))
	text, _, _ = bytes.Cut(text, []byte(" "))
	return strconv.Atoi(string(text))
}

// get returns the whole answer, on a connection of its own.
func get(address, path string) ([]byte, error) {
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n", path); err != nil {
		return nil, err
	}
	return io.ReadAll(c)
}

// server is a demo that is upgraded again and again, between which the same
// binary is started alone.
type server struct {
	*proctest.Server
	b       *testing.B
	address string // of the first listener
	pidfile string
	alone   struct {
		starter          *child
		address, pidfile string
	}
}

// newServer starts a demo with so many listeners. Its probation does not end:
// each upgrade is rolled back, so that the next one finds the same process,
// with the same memory and the same connections.
//
// Further flags are for the demo, and not for what is started alone.
func newServer(b *testing.B, pidDir string, listeners int, further ...string) *server {
	b.Helper()
	s := &server{b: b, pidfile: filepath.Join(pidDir, "old.pid")}
	s.alone.address = freeAddress(b)
	s.alone.pidfile = filepath.Join(pidDir, "alone.pid")
	flags := func(listen, pidfile string) []string {
		f := []string{"-log", "json", "-probation", "1h", "-pidfile", pidfile, "-listen", listen}
		for range listeners - 1 {
			f = append(f, "-listen", "127.0.0.1:0")
		}
		return f
	}
	s.Server = proctest.Start(b, proctest.Demo(b, "bench"), append(flags("127.0.0.1:0", s.pidfile), further...)...)
	s.address = s.Addr("http-0")
	s.alone.starter = start(b, "starter", append([]string{s.Path}, flags(s.alone.address, s.alone.pidfile)...)...)
	return s
}

// freeAddress returns one that the kernel gives to nobody who asks for port 0,
// so that it is free each time.
func freeAddress(b *testing.B) string {
	b.Helper()
	for port := 20000; port < 30000; port++ {
		address := "127.0.0.1:" + strconv.Itoa(port)
		if ln, err := net.Listen("tcp", address); err == nil {
			ln.Close()
			return address
		}
	}
	b.Fatal("every port from 20000 to 29999 is taken")
	return ""
}

// rest is how long all is quiet before a measurement.
const rest = 10 * time.Millisecond

// upgrade returns the time from SIGUSR1 to the successor's first answer, and
// ends the successor.
func (s *server) upgrade() time.Duration {
	s.b.Helper()
	return s.upgradeBy(func() { s.Signal(s.First.Pid, syscall.SIGUSR1) })
}

// upgradeBy returns the time from the call of trigger to the successor's first
// answer, and ends the successor.
func (s *server) upgradeBy(trigger func()) time.Duration {
	s.b.Helper()
	time.Sleep(rest)
	before, old := s.Now(), s.First.Pid
	begun := time.Now()
	trigger()
	pid, at := firstAnswer(s.b, s.address, old)
	s.Signal(pid, syscall.SIGKILL)
	s.After(before, proctest.Changed(old, "serving"))
	for syscall.Kill(pid, 0) == nil { // until it was reaped
		time.Sleep(time.Millisecond)
	}
	return at.Sub(begun)
}

// startAlone returns the time from fork and exec to the first answer.
func (s *server) startAlone() time.Duration {
	s.b.Helper()
	time.Sleep(rest)
	if _, err := io.WriteString(s.alone.starter.stdin, "start\n"); err != nil {
		s.b.Fatal(err)
	}
	_, at := firstAnswer(s.b, s.alone.address, 0)
	begun, err := strconv.ParseInt(strings.TrimSpace(s.alone.starter.line(s.b)), 10, 64)
	if err != nil {
		s.b.Fatal(err)
	}
	s.alone.starter.ask(s.b, "end")
	if err := os.Remove(s.alone.pidfile); err != nil {
		s.b.Fatal(err)
	}
	return at.Sub(time.Unix(0, begun))
}

// fill makes the server keep so much memory, every page of it written to, and
// so many connections.
func (s *server) fill(mib, conns int) {
	s.b.Helper()
	if mib > 0 {
		s.b.Logf("writing to %d MiB", mib)
		answer, err := get(s.address, "/heap?mb="+strconv.Itoa(mib))
		if err != nil || !bytes.Contains(answer, []byte("heap mb=")) {
			s.b.Fatalf("heap: %v: %s", err, answer)
		}
	}
	if conns > 0 {
		s.b.Logf("opening %d connections", conns)
		start(s.b, "hold", s.address, strconv.Itoa(conns)).line(s.b)
	}
}

// holds fails the benchmark unless the server has kept what it was filled with.
func (s *server) holds(mib, conns int) {
	s.b.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.First.Pid))
	if err != nil {
		s.b.Fatal(err)
	}
	if len(open) < conns {
		s.b.Errorf("%d descriptors are open, want %d connections", len(open), conns)
	}
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.First.Pid))
	if err != nil {
		s.b.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(statm), &size, &resident); err != nil {
		s.b.Fatal(err)
	}
	if resident*os.Getpagesize()>>20 < mib {
		s.b.Errorf("%d MiB are resident, want %d", resident*os.Getpagesize()>>20, mib)
	}
}
