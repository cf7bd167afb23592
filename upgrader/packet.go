package upgrader

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// datagram is what net's UDP and unix packet connections have in common.
type datagram interface {
	net.PacketConn
	syscall.Conn
	SetReadBuffer(bytes int) error
	SetWriteBuffer(bytes int) error
}

// PacketConn is what ListenPacket returns: a packet socket behind the gate.
//
// ReadFrom blocks until this process is committed, and again after it has been
// replaced: packets wait in the kernel's buffer for the process that serves.
// WriteTo is never held back, so a replaced process can still answer.
type PacketConn struct {
	datagram
	sock  *socket
	gate  *gate
	owner *Upgrader
}

var _ net.PacketConn = (*PacketConn)(nil)

// ReadFrom reads the next packet.
func (p *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		if _, err := p.gate.pass(); err != nil {
			return 0, nil, &net.OpError{Op: "read", Net: p.LocalAddr().Network(), Addr: p.LocalAddr(), Err: err}
		}
		n, from, err := p.datagram.ReadFrom(b)
		if err == nil || !p.gate.retry(err) {
			return n, from, err
		}
	}
}

// SetReadDeadline bounds ReadFrom, also while the gate is closed.
func (p *PacketConn) SetReadDeadline(t time.Time) error { return p.gate.setDeadline(t) }

// SetDeadline bounds ReadFrom and WriteTo.
func (p *PacketConn) SetDeadline(t time.Time) error {
	return errors.Join(p.gate.setDeadline(t), p.SetWriteDeadline(t))
}

// Close ends ReadFrom and closes this process's descriptor. Idempotent. The
// path of a unixgram socket is treated as Listener's Close does it.
func (p *PacketConn) Close() error {
	if _, first := p.gate.shut(); !first {
		return nil
	}
	p.owner.sockets.remove(p.sock)
	err := p.datagram.Close()
	if p.owner.isCommitted() {
		err = errors.Join(err, p.sock.unlink())
	}
	return err
}
