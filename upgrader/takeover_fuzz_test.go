//go:build linux

package upgrader

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// says writes bytes that need not be messages into one end of a channel, with so
// many descriptors along with the byte at a place, and closes it. It returns the
// other end.
func says(t *testing.T, data []byte, at uint16, rights int) *net.UnixConn {
	t.Helper()
	local, remote, err := fd.Pair()
	must(t, err)
	c, err := fd.Channel(remote)
	must(t, err)
	null, err := os.Open(os.DevNull)
	must(t, err)
	defer null.Close()
	numbers, err := numbersOf([]*os.File{null})
	must(t, err)
	var oob []byte
	if rights > 0 {
		fds := make([]int, rights)
		for i := range fds {
			fds[i] = numbers[0]
		}
		oob = syscall.UnixRights(fds...)
	}
	first := min(int(at), len(data))
	go func() {
		_, _ = c.Write(data[:first])
		_, _, _ = c.WriteMsgUnix(data[first:], oob, nil) // the reader may give up before
		_ = c.CloseWrite()
		for buf := make([]byte, 4096); err == nil; {
			_, err = c.Read(buf) // what the other side answers
		}
		_ = c.Close()
	}()
	return local
}

// seeds are two sides of a take over as bytes.
func seeds(tb testing.TB, messages ...wire.Message) []byte {
	tb.Helper()
	local, remote, err := fd.Pair()
	if err != nil {
		tb.Fatal(err)
	}
	defer remote.Close()
	far, err := fd.Channel(remote)
	if err != nil {
		tb.Fatal(err)
	}
	defer far.Close()
	c := wire.NewConn(local)
	for _, m := range messages {
		if err := c.Send(m); err != nil {
			tb.Fatal(err)
		}
	}
	_ = c.Close()
	var all []byte
	for buf := make([]byte, 4096); ; {
		n, err := far.Read(buf)
		all = append(all, buf[:n]...)
		if err != nil {
			return all
		}
	}
}

// FuzzPredecessor: whatever a predecessor says, a process that comes for its
// sockets gets an error or what the manifest says, and keeps nothing else open.
func FuzzPredecessor(f *testing.F) {
	m := wire.Manifest{Version: wire.Version, Generation: 2, Sockets: []wire.Socket{{Name: "a", Kind: kindFile}}}
	said := seeds(f, m)
	for count := range 4 {
		text := fmt.Sprintf(`{"type":"descriptors","body":{"count":%d}}`, count)
		all := append(binary.BigEndian.AppendUint32(slices.Clone(said), uint32(len(text))), text...)
		f.Add(all, uint16(len(said)), uint8(count))
		f.Add(all, uint16(0), uint8(count))
	}
	f.Add(seeds(f, m, wire.Ready{}), uint16(0), uint8(0))
	f.Add(seeds(f, wire.Abort{Reason: "no"}), uint16(0), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, at uint16, rights uint8) {
		before := openFDs(t)
		u := newUpgrader(Options{Logger: slog.New(slog.DiscardHandler)})
		c := says(t, data, at, int(min(rights, wire.MaxRights)))
		l := &legacy{channel: c, conn: wire.NewConn(c), taken: true}
		err := u.handshake(l)
		if err == nil && l.conn != nil {
			err = u.receive(l)
		}
		if err == nil && l.conn != nil {
			err = u.accept(l)
		}
		closeAll(l.files)
		if err == nil {
			for _, f := range []*os.File{l.pidfile, l.pidfd, l.turn} {
				if f != nil {
					_ = f.Close()
				}
			}
			must(t, u.sockets.closeUnclaimed())
		} else {
			_ = u.sockets.closeUnclaimed() // what was taken before the error
		}
		_ = c.Close()
		wantNoMoreFDs(t, before)
	})
}

// FuzzSuccessor: whatever a process that has come for the sockets answers, it is
// an acknowledgement or an error.
func FuzzSuccessor(f *testing.F) {
	f.Add(seeds(f, wire.Received{Count: 2}), uint16(0), uint8(0))
	f.Add(seeds(f, wire.Failed{Text: "no"}), uint16(4), uint8(1))
	f.Add(seeds(f, wire.Received{Count: 1}, wire.Serving{}), uint16(0), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, at uint16, rights uint8) {
		before := openFDs(t)
		c := says(t, data, at, int(min(rights, wire.MaxRights)))
		s := &stranger{channel: c, conn: wire.NewConn(c)}
		err := s.acknowledge(context.Background(), 2)
		if err == nil && !strings.Contains(string(data), `"received"`) {
			t.Errorf("%q acknowledges", data)
		}
		_ = c.Close()
		wantNoMoreFDs(t, before)
	})
}
