package upgrader

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The variables with which a process tells the successor that it starts which
// descriptors are what. New reads and unsets them.
const (
	envFDs         = "UPGRADER_FDS"             // "http=5 admin=6"; names are query-escaped
	envChannel     = "UPGRADER_CHANNEL_FD"      // the handover channel
	envPIDFile     = "UPGRADER_PIDFILE_FD"      // the locked next pidfile; absent: none
	envGeneration  = "UPGRADER_GENERATION"      // the successor's
	envPredecessor = "UPGRADER_PREDECESSOR_PID" // must be the channel's SO_PEERCRED pid
)

var envNames = []string{envFDs, envChannel, envPIDFile, envGeneration, envPredecessor}

// maxEnv is the longest string that execve accepts, its final NUL and the
// variable's name included (MAX_ARG_STRLEN of execve(2): 32 pages).
const maxEnv = 128 << 10

// maxName is the longest name of a socket or file, in bytes.
const maxName = 255

// environment is what the variables say. The zero value is not valid: a
// channel is never descriptor 0.
type environment struct {
	channel     int
	pidfile     int // 0: none
	generation  int
	predecessor int
	fds         []namedFD
}

type namedFD struct {
	name string
	fd   int
}

// strings returns the variables, or an error that names the limit.
func (e environment) strings() ([]string, error) {
	pairs := make([]string, len(e.fds))
	for i, f := range e.fds {
		pairs[i] = url.QueryEscape(f.name) + "=" + strconv.Itoa(f.fd)
	}
	fds := envFDs + "=" + strings.Join(pairs, " ")
	if len(fds) >= maxEnv {
		return nil, fmt.Errorf("the names of %d sockets and files take %d bytes of environment, the limit is %d: use shorter names",
			len(e.fds), len(fds), maxEnv-1)
	}
	vars := []string{
		fds,
		envChannel + "=" + strconv.Itoa(e.channel),
		envGeneration + "=" + strconv.Itoa(e.generation),
		envPredecessor + "=" + strconv.Itoa(e.predecessor),
	}
	if e.pidfile != 0 {
		vars = append(vars, envPIDFile+"="+strconv.Itoa(e.pidfile))
	}
	return vars, nil
}

// parseEnv reads the variables. ok is false if there are none.
func parseEnv(lookup func(string) (string, bool)) (e environment, ok bool, err error) {
	for _, name := range envNames {
		if _, found := lookup(name); found {
			ok = true
		}
	}
	if !ok {
		return environment{}, false, nil
	}
	number := func(name string, least int) int {
		s, found := lookup(name)
		if !found && name == envPIDFile {
			return 0
		}
		n, convErr := strconv.Atoi(s)
		if convErr != nil || n < least || n > 1<<30 {
			err = errors.Join(err, fmt.Errorf("%s=%q: want a number of at least %d", name, s, least))
		}
		return n
	}
	e = environment{
		channel:     number(envChannel, 3),
		pidfile:     number(envPIDFile, 3),
		generation:  number(envGeneration, 2),
		predecessor: number(envPredecessor, 1),
	}
	fds, _ := lookup(envFDs)
	parsed, fdErr := parseFDs(fds)
	e.fds = parsed
	if err := errors.Join(err, fdErr, e.distinct()); err != nil {
		return environment{}, true, err
	}
	return e, true, nil
}

func parseFDs(s string) ([]namedFD, error) {
	var fds []namedFD
	for pair := range strings.FieldsSeq(s) {
		escaped, number, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(escaped)
		if err == nil {
			err = checkName(name)
		}
		n, convErr := strconv.Atoi(number)
		if convErr == nil && (n < 3 || n > 1<<30) {
			convErr = fmt.Errorf("descriptor %d: want a number of at least 3", n)
		}
		if err := errors.Join(err, convErr); err != nil {
			return nil, fmt.Errorf("%s: %q: want NAME=NUMBER: %w", envFDs, pair, err)
		}
		fds = append(fds, namedFD{name, n})
	}
	return fds, nil
}

// distinct refuses a name or a descriptor that is there twice.
func (e environment) distinct() error {
	names, numbers := map[string]bool{}, map[int]bool{e.channel: true}
	if e.pidfile != 0 {
		if numbers[e.pidfile] {
			return fmt.Errorf("%s: descriptor %d is the channel", envPIDFile, e.pidfile)
		}
		numbers[e.pidfile] = true
	}
	for _, f := range e.fds {
		if names[f.name] || numbers[f.fd] {
			return fmt.Errorf("%s: %q=%d is there twice", envFDs, f.name, f.fd)
		}
		names[f.name], numbers[f.fd] = true, true
	}
	return nil
}

// names reports that the variables say what descriptor n is.
func (e environment) names(n int) bool {
	return n == e.channel || n == e.pidfile ||
		slices.ContainsFunc(e.fds, func(f namedFD) bool { return f.fd == n })
}

// withoutOurs returns env without the variables of the handover, and without
// what a service manager has given to this very process.
func withoutOurs(env []string) []string {
	return without(env, slices.Concat(envNames, listenNames, []string{envWatchdogPID})...)
}

// without returns env without these variables. Of two equal names the first one
// counts (os.StartProcess passes both), so whoever adds one removes it before.
func without(env []string, names ...string) []string {
	out := make([]string, 0, len(env))
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if !slices.Contains(names, name) {
			out = append(out, kv)
		}
	}
	return out
}

// checkName says whether a socket or file may have this name.
func checkName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: it is empty", ErrName)
	case len(name) > maxName:
		return fmt.Errorf("%w %.32q…: %d bytes, the limit is %d", ErrName, name, len(name), maxName)
	case !utf8.ValidString(name):
		return fmt.Errorf("%w %q: it is not UTF-8", ErrName, name)
	}
	return nil
}
