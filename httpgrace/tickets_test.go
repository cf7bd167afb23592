package httpgrace

import (
	"crypto/tls"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// resumes makes a connection to a server with these tickets, and reports
// whether it resumes the session of the one before.
func resumes(t *testing.T, tickets *SessionTickets, client *tls.Config) bool {
	t.Helper()
	cert, _ := testCertificate()
	config := tlsConfig(cert)
	if tickets != nil {
		tickets.Use(config)
	}
	near, far := net.Pipe()
	served := make(chan error, 1)
	go func() {
		srv := tls.Server(far, config.Clone()) // as net/http does
		_, err := srv.Write([]byte("x"))
		served <- err
	}()
	c := tls.Client(near, client)
	if _, err := c.Read(make([]byte, 1)); err != nil { // the ticket came before
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	near.Close()
	far.Close()
	return c.ConnectionState().DidResume
}

func resumingClient() *tls.Config {
	_, pool := testCertificate()
	return &tls.Config{RootCAs: pool, ServerName: "localhost", ClientSessionCache: tls.NewLRUClientSessionCache(1)}
}

// succeedTickets returns what another process knows.
func succeedTickets(t *testing.T, old *SessionTickets) *SessionTickets {
	t.Helper()
	b, err := old.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	next := new(SessionTickets)
	if err := next.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	return next
}

func TestSessionsAreResumedByTheSuccessor(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			client := resumingClient()
			client.MaxVersion = version
			old := new(SessionTickets)
			if resumes(t, old, client) {
				t.Error("there was no session yet")
			}
			if !resumes(t, old, client) {
				t.Error("not by the same process")
			}
			next := succeedTickets(t, old)
			if !resumes(t, next, client) {
				t.Error("not by the successor")
			}
			if !resumes(t, old, client) {
				t.Error("not by the old process, which drains, after the new one")
			}
			if resumes(t, new(SessionTickets), client) {
				t.Error("by a stranger")
			}
		})
	}
	client := resumingClient()
	resumes(t, nil, client)
	if resumes(t, nil, client) {
		t.Error("crypto/tls shares keys: nothing of this is needed")
	}
}

// A key encrypts for a day and decrypts for a week, through any number of
// successors.
func TestTicketKeysAreRenewed(t *testing.T) {
	testCertificate()
	synctest.Test(t, func(t *testing.T) {
		tickets := new(SessionTickets)
		tickets.current()
		first := tickets.keys[0]
		for day := 1; day < ticketKeys; day++ {
			time.Sleep(ticketKeyAge - time.Second)
			tickets = succeedTickets(t, tickets)
			if tickets.current(); len(tickets.keys) != day {
				t.Fatalf("%d keys just before the end of day %d", len(tickets.keys), day)
			}
			time.Sleep(time.Second)
			if tickets.current(); len(tickets.keys) != day+1 || !slices.Contains(tickets.keys, first) {
				t.Fatalf("%d keys on day %d", len(tickets.keys), day+1)
			}
		}
		time.Sleep(ticketKeyAge)
		if tickets.current(); len(tickets.keys) != ticketKeys || slices.Contains(tickets.keys, first) {
			t.Errorf("%d keys after a week and a day", len(tickets.keys))
		}
	})
}

func TestTicketsThatAreNone(t *testing.T) {
	tickets := new(SessionTickets)
	good, _ := tickets.MarshalBinary()
	before := slices.Clone(tickets.keys)
	for name, b := range map[string][]byte{
		"nothing":           nil,
		"no key":            []byte(ticketsMagic),
		"cut":               good[:len(good)-1],
		"another version":   append([]byte("tickets2"), good[len(ticketsMagic):]...),
		"something behind":  append(slices.Clone(good), 0),
		"a text of its own": []byte("it is not from MarshalBinary, but it is of that length: 48 bytes"),
	} {
		if err := tickets.UnmarshalBinary(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if !slices.Equal(tickets.keys, before) {
		t.Error("the keys were changed")
	}
}
