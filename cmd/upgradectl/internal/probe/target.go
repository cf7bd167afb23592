package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/go-handover/handover/internal/proctest/load"
)

// target is what one URL of the command line asks, and of whom.
type target struct {
	url    string // as it was given
	peer   load.Peer
	ask    load.Ask
	expect int // 0: any status
}

// name says what is asked, without whom.
func (t target) name() string { return t.ask.Method + " " + t.ask.Path }

var (
	// A word of capitals cannot be a URL: it has no colon.
	isMethod = regexp.MustCompile(`^[A-Z]+$`).MatchString
	isToken  = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$").MatchString
)

// targets reads [METHOD] URL….
func (o *options) targets(args []string) ([]target, error) {
	fields, host, err := parseFields(o.header)
	if err != nil {
		return nil, err
	}
	var targets []target
	method := o.method
	for i, arg := range args {
		if isMethod(arg) && i+1 < len(args) {
			method = arg
			continue
		}
		t, err := o.target(method, arg)
		if err != nil {
			return nil, err
		}
		t.ask.Fields = fields
		if host != "" {
			t.ask.Host = host
		}
		targets = append(targets, t)
		method = o.method
	}
	return targets, nil
}

func (o *options) target(method, arg string) (target, error) {
	if !isToken(method) || method == http.MethodConnect {
		return target{}, usageError("method %q: want GET, POST or the like", method)
	}
	t := target{url: arg, ask: load.Ask{Method: method}, expect: o.expect}
	if method != http.MethodGet && method != http.MethodHead {
		t.ask.Body = o.body
	}
	var err error
	t.peer, t.ask.Host, t.ask.Path, err = o.peer(arg)
	t.peer.H2, t.peer.Timeout = o.h2, o.timeout
	return t, err
}

// peer finds out whom the URL names, and what of them.
func (o *options) peer(arg string) (p load.Peer, host, path string, err error) {
	if socket, ok := strings.CutPrefix(arg, "unix:"); ok {
		switch {
		case socket == "":
			return p, "", "", usageError("%s: want unix:PATH", arg)
		case o.unix != "":
			return p, "", "", usageError("%s: -unix names another socket, %s", arg, o.unix)
		}
		return load.Peer{Network: "unix", Address: socket}, "localhost", "/", nil
	}
	u, err := url.Parse(arg)
	switch {
	case err != nil:
		return p, "", "", usageError("%w", err)
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return p, "", "", usageError("%q: want http://HOST…, https://HOST… or unix:PATH", arg)
	case u.User != nil:
		return p, "", "", usageError("%s: a user in the URL is not sent: use -header 'Authorization: …'", u.Redacted())
	}
	p = load.Peer{Network: "tcp", Address: net.JoinHostPort(u.Hostname(), u.Port())}
	if u.Port() == "" {
		p.Address = net.JoinHostPort(u.Hostname(), u.Scheme)
	}
	if o.unix != "" {
		p.Network, p.Address = "unix", o.unix
	}
	if u.Scheme == "https" {
		p.TLS = &tls.Config{ServerName: u.Hostname(), InsecureSkipVerify: o.insecure}
	}
	return p, u.Host, u.RequestURI(), nil
}

// parseFields reads NAME: VALUE. The host is no field: HTTP/2 has another place
// for it.
func parseFields(header []string) (fields []load.Field, host string, err error) {
	fields = []load.Field{{Name: "User-Agent", Value: "upgradectl-probe"}}
	for _, line := range header {
		name, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch {
		case !ok || !isToken(name) || strings.ContainsAny(value, "\r\n\x00"):
			return nil, "", usageError("-header %q: want 'NAME: VALUE'", line)
		case strings.EqualFold(name, "Host"):
			host = value
		case ours(name):
			return nil, "", usageError("-header %q: the probe itself sets %s", line, http.CanonicalHeaderKey(name))
		case strings.EqualFold(name, "User-Agent"):
			fields[0].Value = value
		default:
			fields = append(fields, load.Field{Name: name, Value: value})
		}
	}
	return fields, host, nil
}

// ours reports that the field says how the message is sent.
func ours(name string) bool {
	switch http.CanonicalHeaderKey(name) {
	case "Connection", "Content-Length", "Transfer-Encoding", "Upgrade", "Keep-Alive", "Te", "Expect":
		return true
	}
	return false
}

// reach makes one request to each target, which is not counted.
func reach(ctx context.Context, targets []target) error {
	for _, t := range targets {
		a := load.NewAsker(t.peer)
		_, err := a.Ask(ctx, t.ask)
		a.Close()
		if unverified := (*tls.CertificateVerificationError)(nil); errors.As(err, &unverified) {
			err = fmt.Errorf("%w (-insecure takes any certificate)", err)
		}
		if err != nil {
			return fmt.Errorf("%s does not answer: %w", t.url, err)
		}
	}
	return nil
}
