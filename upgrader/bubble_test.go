//go:build unix

package upgrader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-handover/handover/internal/wire"
)

// This file plays the other process of an upgrade for the tests of run, at
// virtual time: no process is started, no socket is opened. Only the pidfile is
// real.

// farEnd is the handover channel as the process under test sees it, and the
// test at its other end.
type farEnd struct {
	name string
	t    testing.TB
	log  fmt.Stringer                     // of what happened
	note func(format string, args ...any) // writes it

	said   chan wire.Message // by the other process
	ended  chan struct{}     // the other process has closed its end, or died
	closed chan struct{}     // by the process under test

	mu      sync.Mutex
	broken  error // what Receive answers once the other process has ended; nil: io.EOF
	deaf    bool  // nobody reads: Send waits its 5 s and fails
	heard   []wire.Message
	rights  []int  // that came with them
	delta   string // what the file of a Delta held
	onSend  func(wire.Message)
	settles bool // it answers Confirm
	endOnce sync.Once
	once    sync.Once
}

func newFarEnd(p *process, name string) *farEnd {
	f := newLink(p.t)
	f.name, f.log, f.note = name, p, p.note
	return f
}

// newLink returns a channel of no process.
func newLink(t testing.TB) *farEnd {
	t.Helper()
	f := &farEnd{
		t: t, name: "peer", log: new(strings.Builder), note: func(string, ...any) {},
		said: make(chan wire.Message, 100), ended: make(chan struct{}), closed: make(chan struct{}),
	}
	t.Cleanup(f.end)
	return f
}

func (f *farEnd) Send(m wire.Message, rights ...int) error {
	select {
	case <-f.ended:
		return fmt.Errorf("send %T: %w", m, syscall.EPIPE)
	case <-f.closed:
		return fmt.Errorf("send %T: %w", m, os.ErrClosed)
	default:
	}
	f.mu.Lock()
	deaf, onSend := f.deaf, f.onSend
	f.mu.Unlock()
	if deaf {
		time.Sleep(wire.SendTimeout)
		return fmt.Errorf("send %T: %w", m, os.ErrDeadlineExceeded)
	}
	f.note("%s: %T", f.name, m)
	if onSend != nil {
		onSend(m)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard, f.rights = append(f.heard, m), append(f.rights, rights...)
	if _, ok := m.(wire.Confirm); ok && f.settles {
		f.said <- wire.Serving{}
	}
	if _, ok := m.(wire.Delta); ok {
		b := make([]byte, 1000)
		n, err := syscall.Pread(rights[0], b, 0)
		f.delta = string(b[:max(n, 0)])
		return err
	}
	return nil
}

// Receive is like the kernel's: what was said before the end is still read.
func (f *farEnd) Receive() (wire.Message, []*os.File, error) {
	select {
	case <-f.closed:
		return nil, nil, os.ErrClosed
	case m := <-f.said:
		return unpack(m)
	default:
	}
	select {
	case <-f.closed:
		return nil, nil, os.ErrClosed
	case m := <-f.said:
		return unpack(m)
	case <-f.ended:
	}
	select {
	case m := <-f.said:
		return unpack(m)
	default:
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return nil, nil, f.broken
	}
	return nil, nil, io.EOF
}

// unpack makes a message and its descriptors of what the other process said.
func unpack(m wire.Message) (wire.Message, []*os.File, error) {
	if m, ok := m.(received); ok {
		return m.Delta, m.files, nil
	}
	return m, nil, nil
}

func (f *farEnd) CloseRead() error { f.end(); return nil }

func (f *farEnd) Close() error { f.once.Do(func() { close(f.closed) }); return nil }

// say makes the other process say something, and waits until the one under
// test has acted on it.
func (f *farEnd) say(messages ...wire.Message) {
	for _, m := range messages {
		f.said <- m
	}
	synctest.Wait()
}

// wantClosed: the process under test holds no descriptor of the channel any more.
func (f *farEnd) wantClosed() {
	f.t.Helper()
	select {
	case <-f.closed:
	default:
		f.t.Errorf("the channel to the %s is open", f.name)
	}
}

// watch calls on for each message that the process under test sends, while it
// sends it.
func (f *farEnd) watch(on func(wire.Message)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onSend = on
}

// deafen makes the other process read no more.
func (f *farEnd) deafen() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deaf = true
}

// ignoreConfirm makes the other process leave a Confirm to the test.
func (f *farEnd) ignoreConfirm() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settles = false
}

// end closes the other process's end of the channel.
func (f *farEnd) end() { f.endOnce.Do(func() { close(f.ended) }) }

// breakWith makes the other process speak what is no message.
func (f *farEnd) breakWith(err error) {
	f.mu.Lock()
	f.broken = err
	f.mu.Unlock()
	f.end()
	synctest.Wait()
}

// hears reports the last message of M's type that the process under test has sent.
func hears[M wire.Message](f *farEnd) (m M, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, sent := range f.heard {
		if is, found := sent.(M); found {
			m, ok = is, true
		}
	}
	return m, ok
}

// sent returns all that the other process was sent.
func (f *farEnd) sent() []wire.Message {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.heard)
}

func wantHears[M wire.Message](f *farEnd) M {
	f.t.Helper()
	m, ok := hears[M](f)
	if !ok {
		f.t.Fatalf("%s was not sent a %T\n%s", f.name, m, f.log)
	}
	return m
}

func wantDoesNotHear[M wire.Message](f *farEnd) {
	f.t.Helper()
	if m, ok := hears[M](f); ok {
		f.t.Fatalf("%s was sent a %T\n%s", f.name, m, f.log)
	}
}

// child is a successor that the test plays.
type child struct {
	*farEnd
	p        *process
	pid      int
	exited   chan struct{}
	immortal atomic.Bool // not even SIGKILL is of use
	dead     sync.Once
}

// die ends the successor: it is reaped, then its words end.
func (c *child) die() {
	c.dead.Do(func() {
		close(c.exited)
		c.end()
	})
}

func (c *child) isDead() bool {
	select {
	case <-c.exited:
		return true
	default:
		return false
	}
}

func (c *child) exit() {
	c.die()
	synctest.Wait()
}

func (c *child) signal(s os.Signal) error {
	c.p.note("%s: signal %v", c.name, s)
	if s == os.Kill && !c.immortal.Load() {
		c.die()
	}
	return nil
}

func (c *child) hello() wire.Hello {
	return wire.Hello{Version: wire.Version, PID: c.pid, Build: "test"}
}

// until takes a good successor through its life up to a phase.
func (c *child) until(p Phase) *child {
	c.p.t.Helper()
	steps := []struct {
		phase Phase
		m     wire.Message
	}{{PhaseReady, c.hello()}, {PhaseCommit, wire.Ready{}}, {PhaseProbation, wire.Serving{}}}
	for _, s := range steps {
		if p == PhaseHello {
			break
		}
		c.say(s.m)
		if s.phase == p {
			break
		}
	}
	if got := c.phase(); got != p {
		c.p.t.Fatalf("the attempt is in phase %q, want %q\n%s", got, p, c.p)
	}
	return c
}

// phase is where the attempt is, by what the successor was told.
func (c *child) phase() Phase {
	_, manifest := hears[wire.Manifest](c.farEnd)
	_, commit := hears[wire.Commit](c.farEnd)
	switch {
	case c.p.state() == probation:
		return PhaseProbation
	case commit:
		return PhaseCommit
	case manifest:
		return PhaseReady
	default:
		return PhaseHello
	}
}

// process is the one under test.
type process struct {
	*Upgrader
	t     *testing.T
	r     *run
	gate  *gate
	begun time.Time
	path  string // of the pidfile

	predecessor *farEnd  // nil: none
	old         *pidfile // the predecessor's
	children    []*child
	launches    sync.Mutex // held while children are added to or walked
	launchError error
	onLaunch    func(context.Context)

	mu       sync.Mutex
	last     string // state
	timeline []string
	onReach  func(point string)
	onLog    func(message string)
}

const firstChild = 1 << 30 // more than any pid

// newProcess returns a process in the state starting. It ends with the bubble.
func newProcess(t *testing.T, o Options, prepare func(*process)) *process {
	t.Helper()
	p := &process{t: t, begun: time.Now(), path: pidfilePath(t)}
	o.PIDFile, o.Logger = p.path, slog.New(timelineHandler{p})
	o, err := o.withDefaults()
	must(t, err)
	p.Upgrader = newUpgrader(o)
	p.hooks = func(point string) {
		p.note("at %s", point)
		p.mu.Lock()
		on := p.onReach
		p.mu.Unlock()
		if on != nil {
			on(point)
		}
	}
	p.executable = executable{file: "/srv/app"}
	p.gate = newGate(false, func(time.Time) error { return nil })
	p.sockets.put(&socket{Socket: wire.Socket{Name: "main", Kind: kindListener}, gate: p.gate}, nil)
	p.r = &run{Upgrader: p.Upgrader, attempt: &attempt{}, carrier: p.launch, parting: wire.Moved{}}
	prepare(p)
	if p.predecessor == nil {
		close(p.alone)
	}
	go p.r.loop()
	t.Cleanup(p.finish)
	return p
}

// newFirst returns a process of generation 1, starting.
func newFirst(t *testing.T, o Options) *process {
	t.Helper()
	return newProcess(t, o, func(p *process) {
		var err error
		p.pidfile, err = openPIDFile(p.path)
		must(t, err)
	})
}

// newServing returns a process of generation 1 that serves.
func newServing(t *testing.T, o Options) *process {
	t.Helper()
	p := newFirst(t, o)
	must(t, p.Ready())
	synctest.Wait()
	p.wantState(serving)
	return p
}

// newSuccessor returns a process of that generation, starting, and the test is
// its predecessor.
func newSuccessor(t *testing.T, generation int, o Options, m wire.Manifest) *process {
	t.Helper()
	return newProcess(t, o, func(p *process) {
		p.old = servingPIDFile(t, p.path)
		p.pidfile, p.pidfileShared = succeed(t, p.old, os.Getpid()), true
		p.generation.Store(int64(generation))
		p.predecessor = newFarEnd(p, "predecessor")
		p.r.pred = predecessor{peer: newPeer(p.predecessor, firstChild-1, p.adopt), manifest: m}
	})
}

// readyToServe calls Ready, which blocks until commit.
func (p *process) readyToServe() <-chan error {
	p.t.Helper()
	result := make(chan error, 1)
	go func() { result <- p.Ready() }()
	synctest.Wait()
	return result
}

// commit is what a predecessor does when its successor is ready.
func (p *process) commit() {
	p.t.Helper()
	must(p.t, p.old.commit())
	p.predecessor.say(wire.Commit{})
}

// confirm is the end of a good probation.
func (p *process) confirm() {
	p.t.Helper()
	p.predecessor.say(wire.Confirm{})
	must(p.t, p.old.confirm())
}

// predecessorDies: the kernel closes all that it had.
func (p *process) predecessorDies() {
	p.t.Helper()
	must(p.t, p.old.closeFiles())
	p.predecessor.end()
	synctest.Wait()
}

// launch is the carrier: it starts nothing.
func (p *process) launch(ctx context.Context) (*successor, error) {
	if p.onLaunch != nil {
		p.onLaunch(ctx)
	}
	if _, err := p.pidfile.prepare(); err != nil {
		return nil, p.attemptError(PhasePrepare, err)
	}
	if p.launchError != nil {
		return nil, p.attemptError(PhaseStart, p.launchError)
	}
	p.launches.Lock()
	defer p.launches.Unlock()
	c := &child{p: p, pid: firstChild + len(p.children), exited: make(chan struct{})}
	c.farEnd = newFarEnd(p, fmt.Sprintf("successor %d", 1+len(p.children)))
	c.settles = true
	if err := p.pidfile.name(c.pid); err != nil {
		return nil, p.attemptError(PhaseStart, err)
	}
	p.children = append(p.children, c)
	p.t.Cleanup(c.die)
	return &successor{peer: newPeer(c, c.pid, nil), exited: c.exited, signal: c.signal}, nil
}

// finish ends what is left, in whatever state it is.
func (p *process) finish() {
	p.mu.Lock()
	p.onReach, p.onLog = nil, nil
	p.mu.Unlock()
	for _, c := range p.children {
		c.die()
	}
	if p.predecessor != nil {
		p.predecessor.end()
	}
	p.Stop()
	time.Sleep(time.Hour)
	for _, c := range p.children {
		c.wantClosed()
	}
	if p.predecessor != nil {
		p.predecessor.wantClosed()
	}
	if p.t.Failed() {
		p.t.Logf("what happened:\n%s", p)
	}
}

// asked is a call of Upgrade that is under way.
type asked struct {
	p        *process
	err      error
	answered chan struct{}
	after    time.Duration // the answer came, since the process began
	cancel   context.CancelCauseFunc
}

// ask calls Upgrade.
func (p *process) ask() *asked {
	ctx, cancel := context.WithCancelCause(context.Background())
	a := &asked{p: p, answered: make(chan struct{}), cancel: cancel}
	go func() {
		a.err = p.Upgrade(ctx)
		a.after = time.Since(p.begun)
		if a.err == nil && p.Err() == nil {
			p.t.Error("Upgrade has returned nil, and Done is open")
		}
		close(a.answered)
		cancel(nil)
	}()
	synctest.Wait()
	return a
}

// upgrade calls Upgrade and takes the successor up to a phase.
func (p *process) upgrade(until Phase) (*asked, *child) {
	p.t.Helper()
	before := len(p.children)
	a := p.ask()
	if len(p.children) != before+1 {
		p.t.Fatalf("no successor was started\n%s", p)
	}
	return a, p.children[before].until(until)
}

// wantNextUpgradeWorks takes a process that serves to its good end.
func (p *process) wantNextUpgradeWorks() {
	p.t.Helper()
	a, s := p.upgrade(PhaseProbation)
	a.want(nil)
	wantHears[wire.Confirm](s.farEnd)
	p.wantEnd(draining, ErrUpgraded)
	wantPID(p.t, p.path, s.pid)
	wantFiles(p.t, p.path, "app.pid", ".app.pid.prev") // the latter is the successor's to remove
}

func (a *asked) isAnswered() bool {
	select {
	case <-a.answered:
		return true
	default:
		return false
	}
}

// want waits for the answer, however long it takes, and checks its cause.
func (a *asked) want(want error) {
	a.p.t.Helper()
	<-a.answered
	if !errors.Is(a.err, want) {
		a.p.t.Errorf("Upgrade: %v, want %v\n%s", a.err, want, a.p)
	}
}

// wantFailed waits for the answer, and checks the phase.
func (a *asked) wantFailed(phase Phase) *SuccessorError {
	a.p.t.Helper()
	<-a.answered
	var e *SuccessorError
	if !errors.As(a.err, &e) || e.Phase != phase {
		a.p.t.Fatalf("Upgrade: %v, want a SuccessorError of phase %s\n%s", a.err, phase, a.p)
	}
	return e
}

// wantExactly asserts that something is not yet so an instant before d has
// passed, and is then.
func (p *process) wantExactly(d time.Duration, what string, happened func() bool) {
	p.t.Helper()
	time.Sleep(d - 1)
	synctest.Wait()
	if happened() {
		p.t.Fatalf("%s before %v had passed\n%s", what, d, p)
	}
	time.Sleep(time.Nanosecond)
	synctest.Wait()
	if !happened() {
		p.t.Fatalf("not %s after %v\n%s", what, d, p)
	}
}

// state is what the log said last: the loop's own is the loop's alone.
func (p *process) state() state {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range numStates {
		if s.String() == p.last {
			return s
		}
	}
	return starting
}

func (p *process) wantState(want state) {
	p.t.Helper()
	synctest.Wait()
	if got := p.state(); got != want {
		p.t.Fatalf("%s, want %s\n%s", got, want, p)
	}
	if p.isCommitted() != want.committed() {
		p.t.Errorf("while %s, committed is %v", want, p.isCommitted())
	}
	if (p.Err() != nil) != want.final() {
		p.t.Errorf("while %s, Err is %v", want, p.Err())
	}
}

// wantServing: this process is the server, as if nothing had happened.
func (p *process) wantServing() {
	p.t.Helper()
	p.wantState(serving)
	p.wantOpen(true)
	wantPID(p.t, p.path, os.Getpid())
	wantFiles(p.t, p.path, "app.pid")
	if !names(p.path, p.pidfile.self) {
		p.t.Error("the pidfile is not this process's")
	}
}

func (p *process) wantOpen(want bool) {
	p.t.Helper()
	if p.isOpen() != want {
		p.t.Errorf("the gate is open: %v, want %v\n%s", !want, want, p)
	}
}

func (p *process) isOpen() bool {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	return p.gate.open
}

// wantEnd: this process is to exit, for that reason.
func (p *process) wantEnd(s state, why error) {
	p.t.Helper()
	p.wantState(s)
	if err := p.Err(); !errors.Is(err, why) {
		p.t.Errorf("Err is %v, want %v", err, why)
	}
}

func (p *process) isHurried() bool {
	select {
	case <-p.Hurry():
		return true
	default:
		return false
	}
}

// bring takes a successor to a state.
func (p *process) bring(to state) {
	p.t.Helper()
	if to != starting {
		p.readyToServe()
	}
	if to == onProbation || to == serving {
		p.commit()
	}
	if to == serving {
		p.confirm()
	}
	p.wantState(to)
}

// wantOldPIDFile: the pidfile is the predecessor's, as it was.
func (p *process) wantOldPIDFile() {
	p.t.Helper()
	if !names(p.path, p.old.self) {
		p.t.Error("the pidfile is not the predecessor's")
	}
}

// sleepUnheard lets d pass while the loop hears nothing, as if the process was
// stopped, or slept with its machine. What happens in act it finds afterwards,
// all at once.
func (p *process) sleepUnheard(d time.Duration, act func()) {
	p.t.Helper()
	p.watchLog(func(message string) {
		if message == "upgrade refused" {
			time.Sleep(d)
		}
	})
	a := p.ask() // is refused
	p.watchLog(nil)
	act()
	time.Sleep(d)
	synctest.Wait()
	<-a.answered
}

// ---- the timeline ----

// watch calls on at each point that the process reaches.
func (p *process) watch(on func(point string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onReach = on
}

func (p *process) watchLog(on func(message string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onLog = on
}

func (p *process) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timeline = append(p.timeline, fmt.Sprintf("%v %s", time.Since(p.begun), fmt.Sprintf(format, args...)))
}

func (p *process) String() string { return strings.Join(p.happened(), "\n") }

func (p *process) happened() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.timeline)
}

// since returns what has happened from the nth entry on, without the time.
func (p *process) since(n int) []string {
	var what []string
	for _, entry := range p.happened()[n:] {
		_, rest, _ := strings.Cut(entry, " ")
		what = append(what, rest)
	}
	return what
}

// when returns the times at which something happened.
func (p *process) when(what string) []time.Duration {
	var times []time.Duration
	for _, entry := range p.happened() {
		at, rest, _ := strings.Cut(entry, " ")
		if d, err := time.ParseDuration(at); err == nil && rest == what {
			times = append(times, d)
		}
	}
	return times
}

// wantAt asserts that something has happened once, at that time.
func (p *process) wantAt(at time.Duration, what string) {
	p.t.Helper()
	if got := p.when(what); len(got) != 1 || got[0] != at {
		p.t.Errorf("%q happened at %v, want it once, at %v\n%s", what, got, at, p)
	}
}

func (p *process) wantNever(what string) {
	p.t.Helper()
	if got := p.when(what); len(got) > 0 {
		p.t.Errorf("%q happened at %v\n%s", what, got, p)
	}
}

// timelineHandler puts the log into the timeline.
type timelineHandler struct{ p *process }

func (timelineHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h timelineHandler) WithAttrs([]slog.Attr) slog.Handler     { return h }
func (h timelineHandler) WithGroup(string) slog.Handler          { return h }

func (h timelineHandler) Handle(_ context.Context, r slog.Record) error {
	what := "log: " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "to":
			what = "state: " + a.Value.String()
			h.p.mu.Lock()
			h.p.last = a.Value.String()
			h.p.mu.Unlock()
			return false
		case "err":
			what += fmt.Sprintf(": %v", a.Value)
		}
		return true
	})
	h.p.note("%s", what)
	h.p.mu.Lock()
	on := h.p.onLog
	h.p.mu.Unlock()
	if on != nil {
		on(r.Message)
	}
	return nil
}
