package load

import (
	"context"
	"time"
)

// link is a client's HTTP/1 connection, one after the other.
type link struct {
	*client
	conn *conn // nil: none
}

// dial makes a connection if there is none.
func (l *link) dial(ctx context.Context) error {
	if l.conn != nil {
		return nil
	}
	l.count(&l.dials, 1)
	nc, unwatch, err := l.load.target.connect(ctx, l.load.cfg.Timeout, "")
	if err != nil {
		return err
	}
	l.conn = newConn(nc, unwatch)
	return nil
}

func (l *link) close() {
	if l.conn != nil {
		l.conn.close()
		l.conn = nil
	}
}

// idle is the client's think time. A connection that the server closes
// meanwhile is given up: that is no failure.
func (l *link) idle(starting context.Context, d time.Duration) {
	if l.conn == nil {
		rest(starting, d)
		return
	}
	if d > 0 && !l.conn.idle(starting, d) {
		l.count(&l.closed, 1)
		l.close()
	}
}

// single carries one HTTP/1 request after the other.
type single struct{ link }

func (s *single) turn(ctx context.Context, n, _ int) {
	r := s.request(n)
	start := time.Now()
	err := s.send(ctx, r)
	s.record(ctx, start, r.silence+r.hold, err)
}

// send makes one attempt, on the connection that is there or on a new one.
func (s *single) send(ctx context.Context, r request) error {
	if err := s.dial(ctx); err != nil {
		return err
	}
	time.Sleep(r.silence)
	keep, err := s.conn.exchange(r, s.load.cfg.Timeout+r.hold)
	if err != nil || !keep || !s.kind.keeps() {
		s.close()
	}
	return err
}
