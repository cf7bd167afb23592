package upgrader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// Listen returns the listening socket with this name: the one that the
// predecessor handed over if there is one, else the one that a service manager
// has opened or kept, else a new one, opened through Options.ListenConfig.
// network and address are those of net.Listen, for "tcp", "tcp4", "tcp6", "unix"
// and "unixpacket". The net.Listener is a *Listener, behind the gate; the caller
// closes it.
//
// An inherited socket is used if it was asked for with the same network and
// address, or if address resolves to what it is bound to; so port 0 keeps its
// port. With another address a new socket is opened, and the inherited one is
// closed once there is no way back to the predecessor.
//
// A socket that a service manager has opened (LISTEN_FDS, LISTEN_FDNAMES) is
// used whatever its address: the manager's configuration says where it listens.
//
// The path of a unix socket that a killed process has left behind is removed if
// nobody listens there.
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
	g := newGate(false, inner.SetDeadline)
	s := &socket{Socket: meta, conn: inner, gate: g}
	if s.Address == "" { // new, or the predecessor was gone before it could say
		s.bound(inner.Addr())
	}
	return &Listener{sock: s, inner: inner, gate: g, owner: u}
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
	ln, err := unlessStale(ctx, network, address, func() (net.Listener, error) { return lc.Listen(ctx, network, address) })
	if err != nil {
		return nil, err
	}
	inner, err := asStream(ln)
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	keepPath(ln)
	return inner, nil
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
	if parked != nil && parked.matches(ctx, kindPacket, network, address) {
		inner, err := inheritPacket(parked)
		if err != nil {
			u.sockets.release(name, parked)
			return nil, err
		}
		meta := parked.Socket
		meta.Kind, meta.Network, meta.Requested = kindPacket, network, address
		p := u.newPacketConn(meta, inner)
		u.sockets.put(p.sock, nil)
		return p, nil
	}
	inner, err := u.bindPacket(ctx, network, address)
	if err != nil {
		u.sockets.release(name, parked)
		return nil, u.explain(err)
	}
	p := u.newPacketConn(wire.Socket{Name: name, Kind: kindPacket, Network: network, Requested: address}, inner)
	u.sockets.put(p.sock, parked)
	return p, nil
}

func (u *Upgrader) newPacketConn(meta wire.Socket, inner datagram) *PacketConn {
	g := newGate(false, inner.SetReadDeadline)
	s := &socket{Socket: meta, conn: inner, gate: g}
	if s.Address == "" { // new, or the predecessor was gone before it could say
		s.bound(inner.LocalAddr())
	}
	return &PacketConn{datagram: inner, sock: s, gate: g, owner: u}
}

func inheritPacket(parked *socket) (datagram, error) {
	pc, err := net.FilePacketConn(parked.parked)
	if err != nil {
		return nil, fmt.Errorf("inherited %s: %w", parked.describe(), err)
	}
	inner, err := asDatagram(pc)
	if err == nil {
		_ = parked.parked.Close() // FilePacketConn works on a duplicate
	}
	return inner, err
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
	pc, err := unlessStale(ctx, network, address, func() (net.PacketConn, error) { return lc.ListenPacket(ctx, network, address) })
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
	s := socket{Socket: wire.Socket{Name: name, Kind: kindListener, Network: addr.Network(), Requested: addr.String()}}
	s.bound(addr)
	if err := u.add(s.Socket, inner); err != nil {
		return err
	}
	keepPath(ln)
	return nil
}

// AddFile keeps a duplicate of f's descriptor under name for every generation
// that follows. f stays the caller's. If a file of that name was inherited
// already, the error is ErrName and the inherited one stays.
func (u *Upgrader) AddFile(name string, f *os.File) error {
	return u.add(wire.Socket{Name: name, Kind: kindFile}, f)
}

func (u *Upgrader) add(meta wire.Socket, c syscall.Conn) error {
	err := errors.Join(u.Err(), checkSocketName(meta.Name))
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

// unlessStale opens a socket. A unix path that a killed process has left
// behind is removed first: nobody listens there, and nothing else removes it.
func unlessStale[T any](ctx context.Context, network, path string, open func() (T, error)) (T, error) {
	v, err := open()
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.HasPrefix(network, "unix") || !stale(ctx, network, path) {
		return v, err
	}
	if err := os.Remove(path); err != nil {
		return v, err
	}
	return open()
}

// stale reports that path is a socket which refuses connections. One that was
// made just now may be between its bind and its listen.
func stale(ctx context.Context, network, path string) bool {
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode()&fs.ModeSocket == 0 || time.Since(fi.ModTime()) < time.Second {
		return false
	}
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, path)
	if err == nil {
		_ = c.Close() // somebody listens
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
