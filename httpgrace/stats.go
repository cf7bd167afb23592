package httpgrace

import (
	"fmt"
	"net/http"
	"strings"
)

// Conns is how many connections there are in each state, as in [http.ConnState].
type Conns struct {
	New      int // accepted, no request yet
	Active   int // with a request, or with a request's header, in flight
	Idle     int // between two requests; also handed over to this process, and not used yet
	Hijacked int // taken over by a handler, and not closed by it yet
}

// Total is the number of connections in all states.
func (n Conns) Total() int { return n.New + n.Active + n.Idle + n.Hijacked }

// String lists the states that have connections: "3 active, 1 hijacked".
func (n Conns) String() string {
	var parts []string
	for _, state := range []struct {
		name  string
		count int
	}{{"new", n.New}, {"active", n.Active}, {"idle", n.Idle}, {"hijacked", n.Hijacked}} {
		if state.count > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", state.count, state.name))
		}
	}
	if parts == nil {
		return "no connection"
	}
	return strings.Join(parts, ", ")
}

func (n *Conns) add(c *conn) {
	switch st := c.state(); {
	case st == http.StateHijacked:
		n.Hijacked++
	case st == http.StateActive, c.begins():
		n.Active++
	case st == http.StateIdle, st == http.StateNew && c.has(adopted):
		n.Idle++
	case st == http.StateNew:
		n.New++
	}
	// What is closed lingers, and is nobody's concern.
}

// begins reports whether a part of a request's header has been read, of which
// net/http knows nothing yet.
func (c *conn) begins() bool {
	st := c.state()
	return (st == http.StateNew || st == http.StateIdle) && c.http2.Load() == nil && !c.has(quiet|isForeign)
}

// Stats is a snapshot of a server's connections.
type Stats struct {
	Conns // that there are now

	// Since the server was made.
	Adopted int // accepted from another process, which had handed them over

	// What drains have done.
	HandedOver int   // given to the successor
	ClosedIdle int   // closed by the drain without a last request
	Late       int   // of those, met by a request on its way: lost
	Forced     Conns // closed by Close or at the drain's limit, by what they were doing then
}

// Stats returns the current figures. The server keeps counting when it is shut
// down, so they are exact once Shutdown or ServeUntil has returned.
func (s *Server) Stats() Stats {
	st := Stats{
		Adopted:    int(s.adopted.Load()),
		HandedOver: int(s.handedOver.Load()),
		ClosedIdle: int(s.closedIdle.Load()),
		Late:       int(s.late.Load()),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Forced = s.forced
	for c := range s.conns {
		st.add(c)
	}
	return st
}
