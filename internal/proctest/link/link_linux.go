package link

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// DefaultDelay makes a round trip of 10 ms.
const DefaultDelay = 5 * time.Millisecond

// Addresses that no other network has to know of. The mask leaves room for
// these two.
var (
	serversAddr = netip.AddrFrom4([4]byte{10, 77, 0, 1})
	clientsAddr = netip.AddrFrom4([4]byte{10, 77, 0, 2})
	netmask     = netip.AddrFrom4([4]byte{255, 255, 255, 252})
)

// Link is a path between two namespaces.
type Link struct {
	Servers, Clients *Namespace

	pumps sync.WaitGroup
	errs  [2]error // of the pumps, when they have ended
}

// New makes a link on which every packet takes delay in each direction, and
// ends it with the test. Zero: DefaultDelay. Where the process may not do that,
// the test is skipped.
func New(t testing.TB, delay time.Duration) *Link {
	t.Helper()
	l, err := open(delay)
	if err != nil {
		skipOrFail(t, err)
	}
	t.Cleanup(func() {
		if err := l.close(); err != nil {
			t.Error("link: ", err)
		}
	})
	return l
}

// skipOrFail tells a machine that does not allow a link from an error.
func skipOrFail(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		t.Skip("a network of its own needs root and /dev/net/tun:", err)
	}
	t.Fatal("link: ", err)
}

func open(delay time.Duration) (_ *Link, err error) {
	if delay == 0 {
		delay = DefaultDelay
	}
	l := new(Link)
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	for _, end := range []struct {
		at   **Namespace
		addr netip.Addr
	}{{&l.Servers, serversAddr}, {&l.Clients, clientsAddr}} {
		n, err := enter(end.addr)
		if err != nil {
			return nil, err
		}
		*end.at = n
		if err := n.Do(func() (err error) { n.device, err = newDevice(n.Addr); return err }); err != nil {
			return nil, err
		}
	}
	l.pumps.Go(func() { l.errs[0] = pump(l.Servers.device, l.Clients.device, delay) })
	l.pumps.Go(func() { l.errs[1] = pump(l.Clients.device, l.Servers.device, delay) })
	return l, nil
}

// close ends what there is of the link. A namespace vanishes with the last
// process in it.
func (l *Link) close() error {
	var errs []error
	for _, n := range []*Namespace{l.Servers, l.Clients} {
		if n == nil {
			continue
		}
		n.leave()
		if n.device != nil {
			errs = append(errs, n.device.Close())
		}
	}
	l.pumps.Wait()
	return errors.Join(append(errs, l.errs[:]...)...)
}
