package upgrader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// The kinds of a socket on the wire.
const (
	kindListener = "listener"
	kindPacket   = "packet"
	kindFile     = "file"
)

// socket is one listening socket, packet connection or file with a name.
type socket struct {
	wire.Socket
	conn   syscall.Conn // what is duplicated for the successor; nil while it is unclaimed
	gate   *gate        // nil for a file
	parked *os.File     // inherited or added, and not yet claimed by the program

	inherited bool // as opposed to added: closed if nobody claims it
	activated bool // the service manager has opened it
}

// unlink removes the path of a unix socket, if it still is the file that was
// bound: a successor, or a stranger, may have bound another one since.
func (s *socket) unlink() error {
	if s.Ino == 0 {
		return nil
	}
	if has, err := s.hasPath(); err != nil || !has {
		return err
	}
	return os.Remove(s.Address)
}

// hasPath reports that the path of a unix socket is the file that was bound.
func (s *socket) hasPath() (bool, error) {
	fi, err := os.Lstat(s.Address)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	dev, ino := fd.Identity(fi)
	return dev == s.Dev && ino == s.Ino, nil
}

// drop closes what nobody has claimed.
func (s *socket) drop() error { return errors.Join(s.parked.Close(), s.unlink()) }

func (s *socket) describe() string {
	if s.Kind == kindFile {
		return fmt.Sprintf("%q (file)", s.Name)
	}
	return fmt.Sprintf("%q (%s %s)", s.Name, s.Network, s.Address)
}

// bound remembers what the socket is bound to, and for a unix socket the
// identity of its path.
func (s *socket) bound(addr net.Addr) {
	s.Address = absolute(addr.Network(), addr.String())
	if !isPath(addr.Network(), s.Address) {
		return
	}
	if fi, err := os.Lstat(s.Address); err == nil {
		s.Dev, s.Ino = fd.Identity(fi)
	}
}

// isPath reports that an address is a unix socket's file, not an abstract name.
func isPath(network, address string) bool {
	return strings.HasPrefix(network, "unix") && address != "" && address[0] != '@'
}

// absolute returns address such that it means the same after a chdir.
func absolute(network, address string) string {
	if isPath(network, address) {
		if path, err := filepath.Abs(address); err == nil {
			return path
		}
	}
	return address
}

// matches reports that the parked socket is what the caller asks for. Package
// net is not asked about what is no such socket: it would set O_NONBLOCK on it.
func (s *socket) matches(ctx context.Context, kind, network, address string) bool {
	if is, err := fd.Kind(s.parked); err != nil || is != kind {
		return false
	}
	switch {
	case s.activated: // where it listens is said in the manager's configuration
		return strings.HasPrefix(network, "unix") == strings.HasPrefix(s.Network, "unix")
	case s.Kind == "": // the predecessor was gone before it could say
	case s.Network != network:
		return false
	case s.Requested == address || s.Address == absolute(network, address):
		return true
	}
	return sameAddress(ctx, s.parkedAddr(), network, address)
}

// parkedAddr returns what the descriptor is bound to: a manifest is not asked
// for what the kernel knows.
func (s *socket) parkedAddr() net.Addr {
	if ln, err := net.FileListener(s.parked); err == nil {
		defer ln.Close() // a duplicate, which unlinks nothing
		return ln.Addr()
	}
	if pc, err := net.FilePacketConn(s.parked); err == nil {
		defer pc.Close() // a duplicate
		return pc.LocalAddr()
	}
	return nil
}

// sameAddress reports that address, resolved, names what bound is.
func sameAddress(ctx context.Context, bound net.Addr, network, address string) bool {
	switch b := bound.(type) {
	case *net.TCPAddr:
		return sameHostPort(ctx, b.IP, b.Port, network, address)
	case *net.UDPAddr:
		return sameHostPort(ctx, b.IP, b.Port, network, address)
	case *net.UnixAddr:
		return b.Net == network && absolute(network, b.Name) == absolute(network, address)
	}
	return false
}

func sameHostPort(ctx context.Context, ip net.IP, port int, network, address string) bool {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	want, err := net.DefaultResolver.LookupPort(ctx, network, service)
	if err != nil || want != 0 && want != port {
		return false
	}
	if host == "" {
		return ip.IsUnspecified()
	}
	ips, err := net.DefaultResolver.LookupIP(ctx, "ip", host)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(ips, ip.Equal)
}
