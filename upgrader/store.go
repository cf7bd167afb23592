package upgrader

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// The variables of socket activation, sd_listen_fds(3). Descriptors that were
// stored with the manager come back by them, too.
const (
	envListenPID   = "LISTEN_PID"
	envListenFDs   = "LISTEN_FDS"
	envListenNames = "LISTEN_FDNAMES"
)

var listenNames = []string{envListenPID, envListenFDs, envListenNames}

// firstActivated is the first descriptor of socket activation.
const firstActivated = 3

// maxStored is the longest name that systemd accepts for a descriptor.
const maxStored = 255

// activation is what the variables say.
type activation struct {
	names []string // of the descriptors; nil: it is not for this process
}

// unnamed is the name of a descriptor that was given none, as
// sd_listen_fds_with_names(3) has it.
const unnamed = "unknown"

// parseActivation reads the variables. The zero value is what it returns if
// there are none, or if they are meant for another process.
func parseActivation(lookup func(string) (string, bool), pid int) (activation, error) {
	if s, _ := lookup(envListenPID); s != strconv.Itoa(pid) {
		return activation{}, nil
	}
	s, _ := lookup(envListenFDs)
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 1<<20 {
		return activation{}, fmt.Errorf("%s=%q: want a number of descriptors", envListenFDs, s)
	}
	a := activation{slices.Repeat([]string{unnamed}, n)}
	names, found := lookup(envListenNames)
	if !found || n == 0 {
		return a, nil
	}
	given := strings.Split(names, ":")
	if len(given) != n {
		return activation{}, fmt.Errorf("%s=%q: want %d names", envListenNames, names, n)
	}
	for i, name := range given {
		a.names[i] = cmp.Or(name, unnamed)
	}
	return a, nil
}

// activate takes what the service manager passes to the first process: the
// sockets of a .socket unit, and those that an earlier process of the service
// has stored with it before it died.
func (u *Upgrader) activate() {
	a, err := parseActivation(os.LookupEnv, os.Getpid())
	if err != nil {
		u.log.Warn("environment ignored", "err", err)
	}
	if a.names != nil || err != nil {
		for _, name := range listenNames {
			_ = os.Unsetenv(name) // the name is valid
		}
	}
	for i, name := range a.names {
		if err := u.parkActivated(firstActivated+i, name); err != nil {
			u.log.Warn("socket from the service manager not used", "name", name, "err", err)
		}
	}
}

// parkActivated keeps one of them under its name. The second socket of a name is
// NAME:1, and so on: no name that a manager gives has a colon.
func (u *Upgrader) parkActivated(n int, name string) error {
	f, err := fd.Inherit(n, name)
	if err != nil {
		return err
	}
	if meta, stored := parseStored(name); stored {
		u.parkStored(f, name, meta)
		return nil
	}
	s := &socket{Socket: wire.Socket{Name: u.sockets.free(name), Kind: kindFile}, parked: f, inherited: true, activated: true}
	if addr := s.parkedAddr(); addr != nil {
		s.Kind, _ = fd.Kind(f) // a socket: it was asked for its address
		s.Network, s.Address = addr.Network(), addr.String()
	}
	if err := errors.Join(checkName(name), u.sockets.park(s)); err != nil {
		return errors.Join(err, f.Close())
	}
	return nil
}

// parkStored keeps what an earlier process of this service listened on. It is
// of no use if the manager has given the socket already, or if its path, which
// a stop removes, is not its own any more.
func (u *Upgrader) parkStored(f *os.File, name string, meta wire.Socket) {
	s := &socket{Socket: meta, parked: f, inherited: true}
	isOurs := meta.Ino == 0
	if !isOurs {
		isOurs, _ = s.hasPath() // one that cannot be looked at is of no use either
	}
	if isOurs && u.sockets.free(meta.Name) == meta.Name && s.parkedAddr() != nil && u.sockets.park(s) == nil {
		u.manager.stored[name] = true
		return
	}
	_ = f.Close() // nobody will use it
	u.manager.forget(name)
}

// free returns a name that is not taken, for a socket that was activated.
func (ss *sockets) free(name string) string {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for i, try := 1, name; ; i++ {
		if ss.named[try] == nil {
			return try
		}
		try = fmt.Sprintf("%s:%d", name, i)
	}
}

// storedPrefix begins the name of a descriptor that is ours.
const storedPrefix = "upgrader?"

// storedName is the name under which the manager keeps a socket: all that the
// next process must know to find it again.
func storedName(s wire.Socket) string {
	v := url.Values{"name": {s.Name}, "kind": {s.Kind}, "net": {s.Network}, "for": {s.Requested}}
	if s.Ino != 0 {
		v.Set("path", s.Address)
		v.Set("dev", strconv.FormatUint(s.Dev, 10))
		v.Set("ino", strconv.FormatUint(s.Ino, 10))
	}
	return storedPrefix + v.Encode()
}

func parseStored(name string) (wire.Socket, bool) {
	query, ours := strings.CutPrefix(name, storedPrefix)
	v, err := url.ParseQuery(query)
	if !ours || err != nil || checkName(v.Get("name")) != nil {
		return wire.Socket{}, false
	}
	s := wire.Socket{
		Name: v.Get("name"), Kind: v.Get("kind"), Network: v.Get("net"), Requested: v.Get("for"), Address: v.Get("path"),
	}
	s.Dev, _ = strconv.ParseUint(v.Get("dev"), 10, 64)
	s.Ino, _ = strconv.ParseUint(v.Get("ino"), 10, 64)
	return s, true
}

// store leaves a duplicate of each socket with the manager, so that it refuses
// nobody if this process is killed, and takes back those that are gone.
func (r *run) store() {
	m := &r.manager
	if m.send == nil || !m.main || !r.state.committed() {
		return
	}
	select {
	case <-r.sockets.changed: // it is about to be known
	default:
	}
	meta, files, err := r.sockets.duplicate()
	r.warn("sockets not stored with the service manager", err)
	defer closeAll(files)
	keep := map[string]bool{}
	for i, s := range meta {
		if s.Kind == kindListener || s.Kind == kindPacket {
			keep[storedName(s)] = true
			if !m.keep(storedName(s), files[i]) {
				return // each further one could take as long to fail
			}
		}
	}
	for name := range m.stored {
		if !keep[name] {
			m.forget(name)
		}
	}
}

// keep stores one descriptor, and reports that the manager listens. The manager
// holds one that it has already once.
func (m *manager) keep(name string, f *os.File) bool {
	if len(name) > maxStored {
		if !m.full {
			err := fmt.Errorf("its name, network and address take %d bytes, the limit is %d", len(name), maxStored)
			m.log.Warn("socket not stored with the service manager", "name", name, "err", err)
		}
		m.full = true
		return true
	}
	if err := m.pass("FDSTORE=1\nFDNAME="+name, f); err != nil {
		m.log.Warn("socket not stored with the service manager", "name", name, "err", err)
		return false
	}
	m.stored[name] = true
	return true
}

// forget takes a descriptor back.
func (m *manager) forget(name string) {
	delete(m.stored, name)
	if m.send == nil {
		return
	}
	if err := m.send("FDSTOREREMOVE=1\nFDNAME=" + name); err != nil {
		m.log.Warn("service manager not told", "what", "FDSTOREREMOVE=1", "err", err)
	}
}
