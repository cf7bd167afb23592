package load

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

// streamPace is the time from one line or block of a long body to the next.
const streamPace = 10 * time.Millisecond

// blockSize is how much of an upload or download there is in each streamPace.
const blockSize = 4 << 10

// payload is a body that no other request has, so that a response which
// belongs to another one is noticed.
func payload(client, n int) string {
	line := fmt.Sprintf("client %d request %d\n", client, n)
	return strings.Repeat(line, 1+rand.IntN(200))
}

// blocks is the body of a request that takes hold, as /download sends it.
func blocks(seed string, hold time.Duration) string {
	var b strings.Builder
	for i := range int(hold / streamPace) {
		line := fmt.Sprintf("%s block %d\n", seed, i)
		b.WriteString(strings.Repeat(line, blockSize/len(line)+1)[:blockSize])
	}
	return b.String()
}

func slowBody(hold time.Duration) string {
	return fmt.Sprintf("slow ms=%d\n", hold.Milliseconds())
}

// pieces cuts text anywhere.
func pieces(text string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for rest := text; rest != ""; {
			n := 1 + rand.IntN(min(len(rest), 1+len(text)/3))
			if !yield(rest[:n]) {
				return
			}
			rest = rest[n:]
		}
	}
}

// header checks one field of a response.
func header(name, want string) func(header, trailer http.Header) error {
	return func(header, _ http.Header) error {
		if got := header.Get(name); got != want {
			return bodyError(fmt.Sprintf("%s %q, want %q", name, got, want))
		}
		return nil
	}
}

func exactly(want string) func(io.Reader) error {
	return func(r io.Reader) error {
		got, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if string(got) != want {
			return wrong(string(got), want)
		}
		return nil
	}
}

// lines checks each line when it arrives.
func lines(hold time.Duration) func(io.Reader) error {
	return func(r io.Reader) error {
		last := int(hold/streamPace) + 1
		s := bufio.NewScanner(r)
		n := 0
		for s.Scan() {
			n++
			want := fmt.Sprintf("line %d", n)
			if n == last {
				want = "end"
			}
			if s.Text() != want {
				// The last line may be half of one, because the rest was cut.
				return cmp.Or(s.Err(), wrong(s.Text(), want))
			}
		}
		if err := s.Err(); err != nil {
			return err
		}
		if n != last {
			return bodyError(fmt.Sprintf("%d lines, want %d", n, last))
		}
		return nil
	}
}
