package load

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// request is one HTTP/1 request, ready to be written, and what its response
// must be.
type request struct {
	method  string // as the response's reader must know it; none: GET
	text    string
	rest    string        // what is written after 100 Continue
	pieces  int           // text is written in so many, during hold; zero: at once
	silence time.Duration // the connection says nothing for so long
	hold    time.Duration // the request is meant to take so long

	status int                                     // none: 200
	check  func(io.Reader) error                   // reads the body to its end
	also   func(header, trailer http.Header) error // nil: nothing more
}

// request returns the n-th request of a client.
func (c *client) request(n int) request {
	hold := c.load.cfg.Hold
	switch c.kind {
	case Post:
		return c.post(payload(c.id, n))
	case Slow:
		return request{text: c.get(fmt.Sprintf("/slow?ms=%d", hold.Milliseconds())), hold: hold, check: exactly(slowBody(hold))}
	case Stream:
		return request{text: c.get(fmt.Sprintf("/stream?ms=%d", hold.Milliseconds())), hold: hold, check: lines(hold)}
	case Late:
		return request{text: c.get("/"), silence: c.think(), check: c.load.identity}
	case Bytewise:
		r := c.post(fmt.Sprintf("client %d request %d\n", c.id, n))
		r.hold, r.pieces = hold, len(r.text)
		return r
	case Upload:
		r := c.post(blocks(c.tag(n), hold))
		r.hold, r.pieces = hold, max(1, int(hold/streamPace))
		return r
	case Download:
		path := fmt.Sprintf("/download?ms=%d&seed=%s", hold.Milliseconds(), c.tag(n))
		return request{text: c.get(path), hold: hold, check: exactly(blocks(c.tag(n), hold))}
	case Continue:
		r := c.post(payload(c.id, n), "Expect: 100-continue")
		head, body, _ := strings.Cut(r.text, "\r\n\r\n")
		r.text, r.rest = head+"\r\n\r\n", body
		return r
	case Head:
		return c.head(n)
	case NotModified:
		return request{
			text: c.get("/cached", `If-None-Match: "1"`), status: http.StatusNotModified,
			check: exactly(""), also: header("Etag", `"1"`),
		}
	case Trailers:
		return c.trailers(n)
	case HTTP10:
		return c.http10(n)
	case UpgradeH2C:
		// The settings are of a client that allows 100 streams.
		return request{text: c.get("/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"), check: c.load.identity}
	case Pipeline, Chaos:
		return c.mixed(n)
	default:
		return request{text: c.get("/"), check: c.load.identity}
	}
}

// get is the text of a GET. A client that will not keep its connection says
// so: the server then closes first, and no port of the client is used up.
func (c *client) get(path string, fields ...string) string {
	if !c.kind.keeps() {
		fields = append(fields, "Connection: close")
	}
	return c.header("GET", path, fields...)
}

func (c *client) header(method, path string, fields ...string) string {
	fields = append([]string{method + " " + path + " HTTP/1.1", "Host: " + c.load.target.host}, fields...)
	return strings.Join(fields, "\r\n") + "\r\n\r\n"
}

func (c *client) post(body string, fields ...string) request {
	fields = append(fields, fmt.Sprintf("Content-Length: %d", len(body)))
	return request{text: c.header("POST", "/echo", fields...) + body, check: exactly(body)}
}

// chunked is post with the body in chunks.
func (c *client) chunked(path, body, trailer string, fields ...string) request {
	var b strings.Builder
	b.WriteString(c.header("POST", path, append(fields, "Transfer-Encoding: chunked")...))
	for piece := range pieces(body) {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(piece), piece)
	}
	b.WriteString("0\r\n" + trailer + "\r\n")
	return request{text: b.String(), check: exactly(body)}
}

func (c *client) trailers(n int) request {
	r := c.chunked("/trailers", payload(c.id, n), "X-Check: "+c.tag(n)+"\r\n", "Trailer: X-Check")
	r.also = func(_, trailer http.Header) error {
		if got := trailer.Get("X-Check"); got != c.tag(n) {
			return bodyError(fmt.Sprintf("trailer %q, want %q", got, c.tag(n)))
		}
		return nil
	}
	return r
}

// head is a GET every second time: bytes that follow the answer to a HEAD are
// taken for the answer to it.
func (c *client) head(n int) request {
	if n%2 == 0 {
		return request{text: c.get("/"), check: c.load.identity}
	}
	return request{
		method: "HEAD", text: c.header("HEAD", "/"), check: exactly(""),
		also: func(header, _ http.Header) error {
			if got := header.Get("Content-Length"); got == "" || got == "0" {
				return bodyError(fmt.Sprintf("Content-Length %q, want that of a GET", got))
			}
			return nil
		},
	}
}

// http10 keeps its connection for one more request, every second time.
func (c *client) http10(n int) request {
	var keep []string
	if n%2 == 1 {
		keep = append(keep, "Connection: keep-alive")
	}
	text := strings.Replace(c.get("/", keep...), "HTTP/1.1", "HTTP/1.0", 1)
	return request{text: text, check: c.load.identity}
}

// tag names a request in what it asks for.
func (c *client) tag(n int) string { return fmt.Sprintf("client-%d-request-%d", c.id, n) }
