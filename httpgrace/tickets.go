package httpgrace

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// ticketKeyAge is how long a key encrypts, and ticketKeys how many there
	// are: clients may come back with a ticket that is a week old, the most that
	// TLS allows (RFC 8446 §4.6.1).
	ticketKeyAge = 24 * time.Hour
	ticketKeys   = 8

	ticketKeySize = 32
	ticketsMagic  = "tickets1"
)

// SessionTickets are the keys with which a TLS server encrypts what its clients
// keep of their sessions. With keys of its own, as crypto/tls makes them, each
// process can resume only the sessions that it has begun, so that all clients of
// a replaced process make full handshakes, many at once. With keys that were
// handed over nobody notices:
//
//	tickets := new(httpgrace.SessionTickets) // or with UnmarshalBinary
//	tickets.Use(srv.TLSConfig)
//
// The zero value is ready to use: it makes a first key when it is needed. As in
// crypto/tls, a key encrypts for a day and decrypts for a week. The methods are
// safe for concurrent use. A SessionTickets must not be copied.
//
// Who has the keys can decrypt recorded sessions that were resumed without a new
// key exchange. They belong in the memory of the processes of one service, not
// into a file.
type SessionTickets struct {
	mu     sync.Mutex
	keys   []ticketKey // the first one encrypts
	config tls.Config  // has them, and nothing else
}

type ticketKey struct {
	made int64 // seconds since 1970
	key  [ticketKeySize]byte
}

// Use makes c encrypt and decrypt its session tickets with these keys, by its
// hooks WrapSession and UnwrapSession, which it sets. It must be called before c
// is used. Several configurations may use the same keys, and resume each other's
// sessions: they must ask the same of a client.
func (t *SessionTickets) Use(c *tls.Config) {
	c.WrapSession = func(state tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
		return t.current().EncryptTicket(state, session)
	}
	c.UnwrapSession = func(identity []byte, state tls.ConnectionState) (*tls.SessionState, error) {
		return t.current().DecryptTicket(identity, state)
	}
}

// current returns a configuration with the keys of now.
func (t *SessionTickets) current() *tls.Config {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stale() {
		t.renew()
	}
	return &t.config
}

// stale reports whether the first key has encrypted for long enough. Callers
// hold mu.
func (t *SessionTickets) stale() bool {
	return len(t.keys) == 0 || time.Now().Unix()-t.keys[0].made >= int64(ticketKeyAge/time.Second)
}

// renew makes a new first key. Callers hold mu.
func (t *SessionTickets) renew() {
	fresh := ticketKey{made: time.Now().Unix()}
	_, _ = rand.Read(fresh.key[:]) // never fails
	t.set(append([]ticketKey{fresh}, t.keys[:min(len(t.keys), ticketKeys-1)]...))
}

// set changes the keys. Callers hold mu.
func (t *SessionTickets) set(keys []ticketKey) {
	t.keys = keys
	bare := make([][ticketKeySize]byte, len(keys))
	for i, k := range keys {
		bare[i] = k.key
	}
	t.config.SetSessionTicketKeys(bare)
}

// MarshalBinary returns the keys and their ages, for UnmarshalBinary in another
// process. It implements [encoding.BinaryMarshaler], and never fails.
func (t *SessionTickets) MarshalBinary() ([]byte, error) {
	t.current()
	t.mu.Lock()
	defer t.mu.Unlock()
	b := []byte(ticketsMagic)
	for _, k := range t.keys {
		b = binary.BigEndian.AppendUint64(b, uint64(k.made))
		b = append(b, k.key[:]...)
	}
	return b, nil
}

// UnmarshalBinary takes over the keys that MarshalBinary has returned in another
// process, in the place of those that there are. On an error these stay.
func (t *SessionTickets) UnmarshalBinary(b []byte) error {
	const size = 8 + ticketKeySize
	rest := len(b) - len(ticketsMagic)
	if rest < size || rest%size != 0 || string(b[:len(ticketsMagic)]) != ticketsMagic {
		return fmt.Errorf("httpgrace: session tickets: %d bytes are not what MarshalBinary returns: %w", len(b), errTickets)
	}
	var keys []ticketKey
	for b = b[len(ticketsMagic):]; len(b) > 0 && len(keys) < ticketKeys; b = b[size:] {
		k := ticketKey{made: int64(binary.BigEndian.Uint64(b))}
		copy(k.key[:], b[8:size])
		keys = append(keys, k)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.set(keys)
	return nil
}

var errTickets = errors.New("start with new keys: clients make one full handshake more")
