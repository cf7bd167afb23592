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
	"sync"
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
}

// unlink removes the path of a unix socket, if it still is the file that was
// bound: a successor, or a stranger, may have bound another one since.
func (s *socket) unlink() error {
	if s.Ino == 0 {
		return nil
	}
	fi, err := os.Lstat(s.Address)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if dev, ino := fd.Identity(fi); dev != s.Dev || ino != s.Ino {
		return nil
	}
	return os.Remove(s.Address)
}

func (s *socket) describe() string {
	if s.Kind == kindFile {
		return fmt.Sprintf("%q (file)", s.Name)
	}
	return fmt.Sprintf("%q (%s %s)", s.Name, s.Network, s.Address)
}

// sockets is the set of what this process holds by name. Its lock is a leaf:
// it is never held while a socket is opened.
type sockets struct {
	mu    sync.Mutex
	named map[string]*socket
	moved []*socket // inherited under a name that was opened anew with another address
	open  bool      // the gates
}

// reserve makes name the caller's. It returns what was inherited or added
// under it, nil if nothing was.
func (ss *sockets) reserve(name string) (parked *socket, err error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s := ss.named[name]; s != nil {
		if s.parked == nil {
			return nil, fmt.Errorf("%w %q: it is taken", ErrName, name)
		}
		parked = s
	}
	ss.named[name] = &socket{Socket: wire.Socket{Name: name}}
	return parked, nil
}

// release undoes reserve after an error.
func (ss *sockets) release(name string, parked *socket) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if parked != nil {
		ss.named[name] = parked
	} else {
		delete(ss.named, name)
	}
}

// put completes what reserve began. moved, if not nil, is what was inherited
// under the same name and is not used.
func (ss *sockets) put(s, moved *socket) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.named[s.Name] = s
	if moved != nil {
		ss.moved = append(ss.moved, moved)
	}
	if s.gate != nil {
		s.gate.set(ss.open)
	}
}

// park keeps s under its name until the program asks for it.
func (ss *sockets) park(s *socket) error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.named[s.Name] != nil {
		return fmt.Errorf("%w %q: it is taken", ErrName, s.Name)
	}
	ss.named[s.Name] = s
	return nil
}

func (ss *sockets) remove(s *socket) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.named[s.Name] == s {
		delete(ss.named, s.Name)
	}
}

func (ss *sockets) gateOf(name string) *gate {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s := ss.named[name]; s != nil && s.Kind == kindListener {
		return s.gate
	}
	return nil
}

// setGates opens or closes all gates, and decides how later ones start.
func (ss *sockets) setGates(open bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.open = open
	for _, s := range ss.named {
		if s.gate != nil {
			s.gate.set(open)
		}
	}
}

// closeUnclaimed closes what the program did not ask for, once there is no way
// back to the predecessor that had it.
func (ss *sockets) closeUnclaimed() error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	gone := ss.moved
	ss.moved = nil
	for name, s := range ss.named {
		if s.parked != nil && s.inherited {
			gone = append(gone, s)
			delete(ss.named, name)
		}
	}
	var err error
	for _, s := range gone {
		err = errors.Join(err, s.parked.Close(), s.unlink())
	}
	return err
}

// unlinkAll removes the paths of all unix sockets: the committed process stops.
func (ss *sockets) unlinkAll() error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	var err error
	for _, s := range ss.named {
		err = errors.Join(err, s.unlink())
	}
	return err
}

// unclaimed describes what was inherited and not asked for yet.
func (ss *sockets) unclaimed() []string {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	var names []string
	for _, s := range ss.moved {
		names = append(names, s.describe())
	}
	for _, s := range ss.named {
		if s.parked != nil {
			names = append(names, s.describe())
		}
	}
	slices.Sort(names)
	return names
}

// duplicate returns close-on-exec duplicates of all sockets and files, which
// the caller closes, with what the manifest says of each.
func (ss *sockets) duplicate() (meta []wire.Socket, files []*os.File, err error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, s := range ss.named {
		conn := s.conn
		if s.parked != nil {
			conn = s.parked
		}
		if conn == nil {
			continue // reserved, not yet open
		}
		f, err := fd.Dup(conn, s.Name)
		if err != nil {
			closeAll(files)
			return nil, nil, fmt.Errorf("duplicate %s, one of %d sockets and files: %w", s.describe(), len(ss.named), err)
		}
		meta, files = append(meta, s.Socket), append(files, f)
	}
	return meta, files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // duplicates: their originals live on
	}
}

// Listen returns the listening socket with this name: the one that the
// predecessor handed over if there is one, else a new one, opened through
// Options.ListenConfig. network and address are those of net.Listen, for
// "tcp", "tcp4", "tcp6", "unix" and "unixpacket". The net.Listener is a
// *Listener, behind the gate; the caller closes it.
//
// An inherited socket is used if it was asked for with the same network and
// address, or if address resolves to what it is bound to; so port 0 keeps its
// port. With another address a new socket is opened, and the inherited one is
// closed once there is no way back to the predecessor.
//
// Call it before Ready; later calls work too, but a socket that is opened while
// an upgrade is under way is not handed over by that upgrade.
func (u *Upgrader) Listen(ctx context.Context, name, network, address string) (net.Listener, error) {
	l, err := u.listen(ctx, name, network, address)
	if err != nil {
		return nil, u.failed(fmt.Errorf("upgrader: listen %q: %w", name, err))
	}
	return l, nil
}

func (u *Upgrader) listen(ctx context.Context, name, network, address string) (*Listener, error) {
	if err := u.Err(); err != nil {
		return nil, err
	}
	parked, err := u.sockets.reserve(name)
	if err != nil {
		return nil, err
	}
	if parked != nil && parked.matches(ctx, kindListener, network, address) {
		l, err := u.inheritListener(parked, network, address)
		if err != nil {
			u.sockets.release(name, parked)
			return nil, err
		}
		u.sockets.put(l.sock, nil)
		return l, nil
	}
	inner, err := u.bind(ctx, network, address)
	if err != nil {
		u.sockets.release(name, parked)
		return nil, u.explain(err)
	}
	l := u.newListener(wire.Socket{Name: name, Kind: kindListener, Network: network, Requested: address}, inner)
	l.sock.bound(inner.Addr())
	u.sockets.put(l.sock, parked)
	return l, nil
}

func (u *Upgrader) inheritListener(parked *socket, network, address string) (*Listener, error) {
	ln, err := net.FileListener(parked.parked)
	if err != nil {
		return nil, fmt.Errorf("inherited %s: %w", parked.describe(), err)
	}
	inner, err := asStream(ln)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("inherited: %w", err), ln.Close())
	}
	_ = parked.parked.Close() // FileListener works on a duplicate
	meta := parked.Socket
	meta.Kind, meta.Network, meta.Requested = kindListener, network, address
	l := u.newListener(meta, inner)
	l.keep = keepAlive(u.options.ListenConfig)
	return l, nil
}

func (u *Upgrader) newListener(meta wire.Socket, inner stream) *Listener {
	if meta.Address == "" {
		meta.Address = inner.Addr().String()
	}
	g := newGate(false, inner.SetDeadline)
	return &Listener{sock: &socket{Socket: meta, conn: inner, gate: g}, inner: inner, gate: g, owner: u}
}

// bind opens a new listening socket.
func (u *Upgrader) bind(ctx context.Context, network, address string) (stream, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix", "unixpacket":
	default:
		return nil, fmt.Errorf("%w: want tcp, tcp4, tcp6, unix or unixpacket", net.UnknownNetworkError(network))
	}
	lc := u.options.ListenConfig
	if lc == nil {
		lc = &net.ListenConfig{}
	}
	ln, err := lc.Listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	inner, err := asStream(ln)
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return inner, nil
}

// bound remembers the identity of a unix socket's path, and the path itself so
// that it can be found after a chdir.
func (s *socket) bound(addr net.Addr) {
	ua, ok := addr.(*net.UnixAddr)
	if !ok || ua.Name == "" || ua.Name[0] == '@' {
		return
	}
	if path, err := filepath.Abs(ua.Name); err == nil {
		s.Address = path
	}
	if fi, err := os.Lstat(s.Address); err == nil {
		s.Dev, s.Ino = fd.Identity(fi)
	}
}

// explain adds the likely cause to a bind error.
func (u *Upgrader) explain(err error) error {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	if names := u.sockets.unclaimed(); len(names) > 0 {
		return fmt.Errorf("%w: inherited and not claimed: %s: listen under that name", err, strings.Join(names, ", "))
	}
	return err
}

// matches reports that the parked socket is what the caller asks for.
func (s *socket) matches(ctx context.Context, kind, network, address string) bool {
	if s.Kind != "" && (s.Kind != kind || s.Network != network) {
		return false
	}
	if s.Kind != "" && s.Requested == address {
		return true
	}
	return sameAddress(ctx, s.parkedAddr(), network, address)
}

// parkedAddr returns what the descriptor is bound to: a manifest is not asked
// for what the kernel knows.
func (s *socket) parkedAddr() net.Addr {
	if ln, err := net.FileListener(s.parked); err == nil {
		defer ln.Close() //nolint:errcheck // a duplicate
		if ul, ok := ln.(*net.UnixListener); ok {
			ul.SetUnlinkOnClose(false)
		}
		return ln.Addr()
	}
	if pc, err := net.FilePacketConn(s.parked); err == nil {
		defer pc.Close() //nolint:errcheck // a duplicate
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
		return b.Net == network && b.Name == address
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

// ListenPacket is Listen for packet sockets: "udp", "udp4", "udp6" and
// "unixgram". The net.PacketConn is a *PacketConn.
func (u *Upgrader) ListenPacket(ctx context.Context, name, network, address string) (net.PacketConn, error) {
	p, err := u.listenPacket(ctx, name, network, address)
	if err != nil {
		return nil, u.failed(fmt.Errorf("upgrader: listen %q: %w", name, err))
	}
	return p, nil
}

func (u *Upgrader) listenPacket(ctx context.Context, name, network, address string) (*PacketConn, error) {
	if err := u.Err(); err != nil {
		return nil, err
	}
	parked, err := u.sockets.reserve(name)
	if err != nil {
		return nil, err
	}
	meta := wire.Socket{Name: name, Kind: kindPacket, Network: network, Requested: address}
	var inner datagram
	moved := parked
	if parked != nil && parked.matches(ctx, kindPacket, network, address) {
		inner, err = inheritPacket(parked)
		meta.Dev, meta.Ino, moved = parked.Dev, parked.Ino, nil
	} else {
		inner, err = u.bindPacket(ctx, network, address)
	}
	if err != nil {
		u.sockets.release(name, parked)
		return nil, u.explain(err)
	}
	meta.Address = inner.LocalAddr().String()
	g := newGate(false, inner.SetReadDeadline)
	s := &socket{Socket: meta, conn: inner, gate: g}
	if parked == moved {
		s.bound(inner.LocalAddr())
	}
	u.sockets.put(s, moved)
	return &PacketConn{datagram: inner, sock: s, gate: g, owner: u}, nil
}

func inheritPacket(parked *socket) (datagram, error) {
	pc, err := net.FilePacketConn(parked.parked)
	if err != nil {
		return nil, fmt.Errorf("inherited %s: %w", parked.describe(), err)
	}
	_ = parked.parked.Close() // FilePacketConn works on a duplicate
	return asDatagram(pc)
}

func (u *Upgrader) bindPacket(ctx context.Context, network, address string) (datagram, error) {
	switch network {
	case "udp", "udp4", "udp6", "unixgram":
	default:
		return nil, fmt.Errorf("%w: want udp, udp4, udp6 or unixgram", net.UnknownNetworkError(network))
	}
	lc := u.options.ListenConfig
	if lc == nil {
		lc = &net.ListenConfig{}
	}
	pc, err := lc.ListenPacket(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return asDatagram(pc)
}

func asDatagram(pc net.PacketConn) (datagram, error) {
	d, ok := pc.(datagram)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%T cannot be handed over: want a *net.UDPConn or *net.UnixConn", pc), pc.Close())
	}
	return d, nil
}

// AddListener keeps a duplicate of ln's descriptor under name, for Listen to
// find as if it had been inherited: for a socket that the program has opened
// itself or was given. If a socket of that name was inherited already, the
// error is ErrName and the inherited one stays. The caller may close ln, which
// must be a *net.TCPListener or *net.UnixListener; a unix one no longer unlinks
// its path.
func (u *Upgrader) AddListener(name string, ln net.Listener) error {
	inner, err := asStream(ln)
	if err != nil {
		return fmt.Errorf("upgrader: add %q: %w", name, err)
	}
	addr := ln.Addr()
	s := socket{Socket: wire.Socket{
		Name: name, Kind: kindListener, Network: addr.Network(), Requested: addr.String(), Address: addr.String(),
	}}
	s.bound(addr)
	return u.add(s.Socket, inner)
}

// AddFile keeps a duplicate of f's descriptor under name for every generation
// that follows. f stays the caller's. If a file of that name was inherited
// already, the error is ErrName and the inherited one stays.
func (u *Upgrader) AddFile(name string, f *os.File) error {
	return u.add(wire.Socket{Name: name, Kind: kindFile}, f)
}

func (u *Upgrader) add(meta wire.Socket, c syscall.Conn) error {
	err := errors.Join(u.Err(), checkName(meta.Name))
	if err != nil {
		return fmt.Errorf("upgrader: add %q: %w", meta.Name, err)
	}
	f, err := fd.Dup(c, meta.Name)
	if err == nil {
		if err = u.sockets.park(&socket{Socket: meta, parked: f}); err != nil {
			_ = f.Close() // a duplicate
		}
	}
	if err != nil {
		return fmt.Errorf("upgrader: add %q: %w", meta.Name, err)
	}
	return nil
}

// File returns a duplicate of the file with this name, which was inherited or
// added, and keeps the file for the generations that follow. The caller closes
// the duplicate. The error is fs.ErrNotExist if there is no such file.
func (u *Upgrader) File(name string) (*os.File, error) {
	f, err := u.sockets.file(name)
	if err != nil {
		return nil, fmt.Errorf("upgrader: file %q: %w", name, err)
	}
	return f, nil
}

func (ss *sockets) file(name string) (*os.File, error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.named[name]
	if s == nil || s.Kind == kindListener || s.Kind == kindPacket {
		return nil, fs.ErrNotExist
	}
	if s.parked != nil {
		s.Kind, s.conn, s.parked = kindFile, s.parked, nil
	}
	return fd.Dup(s.conn, name)
}
