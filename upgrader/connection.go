package upgrader

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"weak"

	"github.com/go-handover/handover/internal/wire"
)

// handOver gives c to the successor's listener of that name.
func (u *Upgrader) handOver(name string, c syscall.Conn) error {
	next := u.successor.Load()
	if next == nil {
		return errors.New("this process does not drain for a successor")
	}
	return next.handOver(name, c)
}

// adopt takes a connection that the predecessor p hands over. It answers
// before anybody reads from the connection: one that was not answered has not
// been touched, and the predecessor can keep it.
func (u *Upgrader) adopt(p *peer, m wire.Connection, files []*os.File) {
	c, err := connection(files)
	if err != nil {
		p.refuse(m, err)
		return
	}
	if next := u.successor.Load(); next != nil {
		// This process has been replaced meanwhile.
		go p.passOn(next, m, c)
		return
	}
	g := u.sockets.gateOf(m.Listener)
	switch {
	case u.Err() != nil:
		err = u.Err()
	case g == nil:
		err = fmt.Errorf("no listener %q", m.Listener)
	}
	if err != nil {
		p.refuse(m, err)
		_ = c.Close() // a duplicate
		return
	}
	if err := p.Send(wire.Taken{ID: m.ID}); err != nil {
		_ = c.Close() // without an answer it is the predecessor's
		return
	}
	if !g.deliver(c) { // closed this instant, perhaps because it was replaced
		go u.passOnTaken(m, c)
	}
}

// passOnTaken gives a connection that was promised to the predecessor to the
// next generation. Without one it ends with the listener.
func (u *Upgrader) passOnTaken(m wire.Connection, c net.Conn) {
	defer c.Close() // a duplicate
	if sc, ok := c.(syscall.Conn); ok {
		if err := u.handOver(m.Listener, sc); err != nil {
			u.log.Debug("connection closed with its listener", "pid", os.Getpid(), "listener", m.Listener, "err", err)
		}
	}
}

// passOn gives the connection m to the next generation, and p its answer.
func (p *peer) passOn(next *peer, m wire.Connection, c net.Conn) {
	defer c.Close() // a duplicate
	sc, ok := c.(syscall.Conn)
	if !ok {
		p.refuse(m, fmt.Errorf("%T has no descriptor", c))
		return
	}
	if err := next.handOver(m.Listener, sc); err != nil {
		p.refuse(m, err)
		return
	}
	_ = p.Send(wire.Taken{ID: m.ID}) // if it is gone, so is its copy
}

func (p *peer) refuse(m wire.Connection, err error) {
	_ = p.Send(wire.Refused{ID: m.ID, Reason: err.Error()}) // if it is gone, so is its copy
}

// connection makes a net.Conn of the descriptor that came with a message.
func connection(files []*os.File) (net.Conn, error) {
	if len(files) == 0 {
		return nil, errors.New("no descriptor arrived: this process is at RLIMIT_NOFILE")
	}
	defer closeAll(files) // FileConn works on a duplicate
	c, err := net.FileConn(files[0])
	if err != nil {
		return nil, err
	}
	if c.RemoteAddr() == nil {
		return nil, errors.Join(errors.New("it is not connected"), c.Close())
	}
	return c, nil
}

// adopted remembers which connections were handed over, for as long as they
// are in use. It does not keep them alive.
type adopted struct{ set sync.Map }

func (a *adopted) add(c net.Conn) {
	switch c := c.(type) {
	case *net.TCPConn:
		remember(&a.set, c)
	case *net.UnixConn:
		remember(&a.set, c)
	}
}

func remember[T any](set *sync.Map, c *T) {
	key := weak.Make(c)
	set.Store(key, struct{}{})
	runtime.AddCleanup(c, func(key weak.Pointer[T]) { set.Delete(key) }, key)
}

func (a *adopted) has(c net.Conn) (found bool) {
	switch c := c.(type) {
	case *net.TCPConn:
		_, found = a.set.Load(weak.Make(c))
	case *net.UnixConn:
		_, found = a.set.Load(weak.Make(c))
	}
	return found
}
