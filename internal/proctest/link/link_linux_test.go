package link

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// connect returns the two ends of a TCP connection over l.
func connect(t *testing.T, l *Link) (client, server net.Conn) {
	t.Helper()
	var ln net.Listener
	err := l.Servers.Do(func() (err error) {
		ln, err = net.Listen("tcp", l.Servers.Addr.String()+":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	err = l.Clients.Do(func() (err error) {
		client, err = net.Dial("tcp", ln.Addr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

func TestRoundTripTakesTwiceTheDelay(t *testing.T) {
	l := New(t, 0)
	client, server := connect(t, l)
	go io.Copy(server, server)
	for i := range 50 {
		begun := time.Now()
		ping := fmt.Sprintf("ping %2d", i)
		io.WriteString(client, ping)
		pong := make([]byte, len(ping))
		if _, err := io.ReadFull(client, pong); err != nil || string(pong) != ping {
			t.Fatalf("%q %v, want %q", pong, err, ping)
		}
		if took := time.Since(begun); took < 2*DefaultDelay {
			t.Errorf("a round trip takes %v, less than the path", took)
		}
	}
}

// TestManyBytesArriveWithoutALoss: TCP would hide a packet that is dropped, so
// the kernel is asked for them.
func TestManyBytesArriveWithoutALoss(t *testing.T) {
	l := New(t, time.Millisecond)
	const each, conns = 1 << 20, 16
	arrived := make(chan error, conns)
	for range conns {
		client, server := connect(t, l)
		go func() {
			io.CopyN(client, endless{}, each)
			client.Close()
		}()
		go func() {
			n, err := io.Copy(io.Discard, server)
			if err == nil && n != each {
				err = fmt.Errorf("%d bytes, want %d", n, each)
			}
			arrived <- err
		}()
	}
	for range conns {
		if err := <-arrived; err != nil {
			t.Error(err)
		}
	}
	for name, n := range map[string]*Namespace{"servers": l.Servers, "clients": l.Clients} {
		if packets, dropped := sent(t, n); dropped != 0 || packets == 0 {
			t.Errorf("%d of %d packets of the %s were dropped", dropped, packets, name)
		}
	}
}

// endless yields bytes for ever.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// sent returns how many packets the end of a link has sent, and how many of
// them the kernel has thrown away.
func sent(t *testing.T, n *Namespace) (packets, dropped int) {
	t.Helper()
	_, line, found := strings.Cut(devices(t, n), deviceName+":")
	// Eight columns of what was received, then bytes packets errs drop.
	columns := strings.Fields(line)
	if !found || len(columns) < 16 {
		t.Fatalf("no device in %q", line)
	}
	if _, err := fmt.Sscan(columns[9]+" "+columns[11], &packets, &dropped); err != nil {
		t.Fatal(err)
	}
	return packets, dropped
}

func devices(t *testing.T, n *Namespace) (text string) {
	t.Helper()
	err := n.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/dev")
		text = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestNamespaceIsPrivate: nothing of the machine is in it, and nothing of it
// is in the machine's.
func TestNamespaceIsPrivate(t *testing.T) {
	l := New(t, 0)
	for _, n := range []*Namespace{l.Servers, l.Clients} {
		if got := strings.Count(devices(t, n), ":"); got != 2 {
			t.Errorf("want lo and %s, got\n%s", deviceName, devices(t, n))
		}
	}
	if outside, err := os.ReadFile("/proc/self/net/dev"); err != nil || strings.Contains(string(outside), deviceName) {
		t.Errorf("%v, the machine's devices are\n%s", err, outside)
	}
}

// TestProcessIsInTheNamespace: and so are those that it starts.
func TestProcessIsInTheNamespace(t *testing.T) {
	l := New(t, 0)
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "readlink /proc/self/ns/net; :")
	var out strings.Builder
	cmd.Stdout = &out
	if err := l.Servers.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.TrimSpace(out.String()), name(t, l.Servers); got != want {
		t.Errorf("it is in %s, want %s", got, want)
	}
	if here, err := os.Readlink("/proc/self/ns/net"); err != nil || here == name(t, l.Servers) {
		t.Errorf("the test itself is in %s %v", here, err)
	}
}

// name is what the kernel calls a namespace.
func name(t *testing.T, n *Namespace) (name string) {
	t.Helper()
	err := n.Do(func() (err error) {
		name, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// So many at once that the main thread, which outlives its goroutines, would
// be among those that are in a namespace.
func TestNothingIsLeftOfALink(t *testing.T) {
	before := descriptors(t)
	var links []*Link
	var names []string
	for range 20 {
		l, err := open(0)
		if err != nil {
			skipOrFail(t, err)
		}
		links = append(links, l)
		names = append(names, name(t, l.Servers), name(t, l.Clients))
	}
	if got := inhabited(t, names); got != len(names) {
		t.Fatalf("%d threads are in %d namespaces: the test cannot see them", got, len(names))
	}
	for _, l := range links {
		if err := l.close(); err != nil {
			t.Error(err)
		}
	}
	if after := descriptors(t); after > before { // fewer: a test before this one had left some to be collected
		t.Errorf("%d descriptors are open, were %d", after, before)
	}
	// A thread ends a moment after its goroutine.
	limit := time.Now().Add(10 * time.Second)
	for n := inhabited(t, names); n > 0; n = inhabited(t, names) {
		if time.Now().After(limit) {
			t.Fatalf("%d threads are still in a namespace", n)
		}
		runtime.Gosched()
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// inhabited counts the threads of this process that are in one of namespaces.
func inhabited(t *testing.T, namespaces []string) (threads int) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		// It may just have ended.
		if name, err := os.Readlink(link); err == nil && slices.Contains(namespaces, name) {
			threads++
		}
	}
	return threads
}
