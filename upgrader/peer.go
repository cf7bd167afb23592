package upgrader

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/wire"
)

// handOverTimeout bounds the wait for the answer to one connection.
const handOverTimeout = 5 * time.Second

var errPeerGone = errors.New("the successor is gone")

// link is a handover channel: *wire.Conn, or a test's.
type link interface {
	Send(m wire.Message, rights ...int) error
	Receive() (wire.Message, []*os.File, error)
	CloseRead() error
	Close() error
}

// peer is the process at the other end of a handover channel. The channel is
// the one ordered source of what the peer says and of its end, so that a
// message which was sent before a death is never overtaken by it.
type peer struct {
	link
	pid   int
	inbox chan wire.Message // closed when the peer is gone
	ended chan struct{}     // the same
	err   error             // set before that: nil unless it spoke what is no message
	adopt func(*peer, wire.Connection, []*os.File)

	mu      sync.Mutex
	last    uint64
	answers map[uint64]chan error // of connections under way; nil: the peer is gone
}

// newPeer starts to read from l, until it ends. adopt receives the connections
// that the peer hands over; nil if it must not.
func newPeer(l link, pid int, adopt func(*peer, wire.Connection, []*os.File)) *peer {
	p := &peer{link: l, pid: pid, inbox: make(chan wire.Message), ended: make(chan struct{}), adopt: adopt, answers: map[uint64]chan error{}}
	go p.read()
	return p
}

func (p *peer) read() {
	defer close(p.inbox)
	defer close(p.ended)
	defer p.endAnswers()
	for {
		m, files, err := p.Receive()
		if err != nil {
			// The channel stays open: the peer would take its end for our death.
			if !isGone(err) {
				p.err = err
			}
			return
		}
		switch m := m.(type) {
		case wire.Connection:
			if p.adopt == nil {
				closeAll(files)
				continue
			}
			p.adopt(p, m, files)
		case wire.Delta:
			if p.adopt == nil { // a successor has none to give
				closeAll(files)
				files = nil
			}
			p.inbox <- received{m, files}
		case wire.Taken:
			p.answer(m.ID, nil)
		case wire.Refused:
			p.answer(m.ID, fmt.Errorf("refused: %s", m.Reason))
		case wire.Locks:
			p.inbox <- keys{m, files}
		default:
			p.inbox <- m
		}
	}
}

// keys is the message Locks with what came along.
type keys struct {
	wire.Locks
	files []*os.File
}

// ignore reads what the peer still says, until it is gone.
func (p *peer) ignore() {
	go func() {
		for range p.inbox {
		}
	}()
}

// isGone reports that err is how the death of a peer looks, not a bad message.
func isGone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// handOver gives the peer a connection for its listener name, and waits for
// the answer.
func (p *peer) handOver(name string, c syscall.Conn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	id, answer, err := p.expect()
	if err != nil {
		return err
	}
	var sendErr error
	err = rc.Control(func(fd uintptr) {
		sendErr = p.Send(wire.Connection{ID: id, Listener: name}, int(fd))
	})
	if err := errors.Join(err, sendErr); err != nil {
		p.answer(id, err)
		return <-answer
	}
	limit := time.NewTimer(handOverTimeout)
	defer limit.Stop()
	select {
	case err := <-answer:
		return err
	case <-limit.C:
		// The peer hangs. With our reading side shut it can say yes no more, and
		// what it has said already is still read: every answer becomes certain.
		return errors.Join(p.CloseRead(), <-answer)
	}
}

func (p *peer) expect() (uint64, <-chan error, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answers == nil {
		return 0, nil, errPeerGone
	}
	p.last++
	answer := make(chan error, 1)
	p.answers[p.last] = answer
	return p.last, answer, nil
}

func (p *peer) answer(id uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if answer := p.answers[id]; answer != nil {
		answer <- err
		delete(p.answers, id)
	}
}

func (p *peer) endAnswers() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, answer := range p.answers {
		answer <- errPeerGone
	}
	p.answers = nil
}
