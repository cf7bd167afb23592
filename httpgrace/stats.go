package httpgrace

import "net/http"

// Stats is a snapshot of a server's connections.
type Stats struct {
	// Connections by state, as in [http.ConnState].
	New      int // accepted, no request yet
	Active   int // with a request, or with a request's header, in flight
	Idle     int // between two requests
	Hijacked int // taken over by a handler, and not closed by it yet

	// What drains have done.
	ClosedIdle int // closed by the drain without a last request
	Late       int // of those, met by a request on its way: lost
	Forced     int // closed by Close or at the drain's limit, whatever they did
}

// Stats returns the current figures. The server keeps counting when it is shut
// down, so they are exact once Shutdown or ServeUntil has returned.
func (s *Server) Stats() Stats {
	st := Stats{
		ClosedIdle: int(s.closedIdle.Load()),
		Late:       int(s.late.Load()),
		Forced:     int(s.forced.Load()),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		switch c.state() {
		case http.StateNew:
			st.New++
		case http.StateActive:
			st.Active++
		case http.StateIdle:
			st.Idle++
		case http.StateHijacked:
			st.Hijacked++
		case http.StateClosed: // lingers
		}
	}
	return st
}
