package upgradertest

import (
	"context"
	"strings"
)

func (s *Server) add(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
	close(s.more)
	s.more = make(chan struct{})
}

// Output returns what all processes have printed until now, on standard output
// and standard error. It may be called from any goroutine.
func (s *Server) Output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

// lastWords are for an error.
func (s *Server) lastWords() string {
	const last = 10
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lines) == 0 {
		return "it has printed nothing"
	}
	return "its last lines:\n\t" + strings.Join(s.lines[max(0, len(s.lines)-last):], "\n\t")
}

// WaitOutput waits until a process of the server has printed a line with this
// text in it, and returns the first such line. It looks at all that was printed
// from the beginning on.
func (s *Server) WaitOutput(text string) string {
	s.tb.Helper()
	ctx, cancel := s.limit(context.Background())
	defer cancel()
	for at, over := 0, false; ; {
		s.mu.Lock()
		lines, more := s.lines[at:], s.more
		s.mu.Unlock()
		for _, line := range lines {
			if strings.Contains(line, text) {
				return line
			}
		}
		at += len(lines)
		if over {
			s.tb.Fatalf("upgradertest: every process has ended, and none has printed %q; %s", text, s.lastWords())
		}
		select {
		case <-more:
		case <-s.program.Gone():
			over = true // one more look
		case <-ctx.Done():
			s.tb.Fatalf("upgradertest: %q is printed: %v; %s", text, context.Cause(ctx), s.lastWords())
		}
	}
}
