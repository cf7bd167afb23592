package load

import (
	"math/rand/v2"
	"slices"
)

// Kind is what a client does, again and again.
type Kind string

// The kinds of client.
const (
	New         Kind = "new"
	Late        Kind = "late"
	Get         Kind = "get"
	Post        Kind = "post"
	Slow        Kind = "slow"
	Stream      Kind = "stream"
	Bytewise    Kind = "bytewise"
	Upload      Kind = "upload"
	Download    Kind = "download"
	Continue    Kind = "continue"
	Head        Kind = "head"
	NotModified Kind = "notmodified"
	Trailers    Kind = "trailers"
	HTTP10      Kind = "http10"
	UpgradeH2C  Kind = "upgradeh2c"
	Pipeline    Kind = "pipeline"
	Chaos       Kind = "chaos"
	WS          Kind = "ws"
	SSE         Kind = "sse"
	Transport   Kind = "transport"
	H2          Kind = "h2"
	H2Transport Kind = "h2transport"
)

// kinds has them in the order of a report.
var kinds = []struct {
	kind Kind
	does string
}{
	{New, "a new connection for each GET"},
	{Late, "a new connection that says nothing for a while, then GET"},
	{Get, "GET on a connection that is kept, as with all that follow"},
	{Post, "POST"},
	{Slow, "GET that the server thinks about for -hold"},
	{Stream, "GET whose response takes -hold, in chunks"},
	{Bytewise, "POST that is written byte by byte, for -hold"},
	{Upload, "POST whose body is sent for -hold"},
	{Download, "GET whose response takes -hold, of known length"},
	{Continue, "POST that waits for 100 Continue before it sends the body"},
	{Head, "HEAD and GET in turn"},
	{NotModified, "GET with If-None-Match, answered 304"},
	{Trailers, "POST in chunks with a trailer, answered alike"},
	{HTTP10, "GET of HTTP/1.0, in turn with and without keep-alive"},
	{UpgradeH2C, "GET with Upgrade: h2c, answered over HTTP/1.1"},
	{Pipeline, "4 to 8 GET and POST in one write"},
	{Chaos, "up to 8 GET and POST at once, in random pieces, some in chunks, with stray empty lines"},
	{WS, "messages on a WebSocket, which are echoed"},
	{SSE, "server-sent events, each of which counts as a request"},
	{Transport, "POST by Go's http.Transport, with a body that cannot be rewound"},
	{H2, "4 at once of GET and POST over HTTP/2, frame by frame; in the clear to http://"},
	{H2Transport, "4 at once of POST as above and GET, by Go's http.Transport over HTTP/2"},
}

// Kinds lists the kinds of client in the order of a report.
var Kinds = func() (all []Kind) {
	for _, k := range kinds {
		all = append(all, k.kind)
	}
	return all
}()

// Known reports that k is one of Kinds.
func (k Kind) Known() bool { return slices.Contains(Kinds, k) }

// Does says in a few words what a client of this kind does.
func (k Kind) Does() string {
	i := slices.Index(Kinds, k)
	return kinds[i].does
}

// keeps reports that clients of this kind keep their connection.
func (k Kind) keeps() bool { return k != New && k != Late }

// batch is how many requests a client of this kind sends at once.
func (k Kind) batch() int {
	switch k {
	case Pipeline:
		return 4 + rand.IntN(5)
	case Chaos:
		return 1 + rand.IntN(8)
	default:
		return 1
	}
}

// streams is how many requests a client of this kind has under way on its
// connection, independent of each other.
func (k Kind) streams() int {
	if k == H2 || k == H2Transport {
		return 4
	}
	return 1
}
