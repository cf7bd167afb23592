package upgrader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-handover/handover/internal/wire"
)

// Defaults of Options.
const (
	DefaultReadyTimeout = time.Minute
	DefaultProbation    = 5 * time.Second
	DefaultDrainTimeout = 10 * time.Minute
	DefaultMaxDraining  = 2
)

// The limits that are not options. What their expiry means is said at their use.
const (
	helloTimeout   = 10 * time.Second       // started → hello, and hello → manifest
	maxReadyWait   = 10 * time.Minute       // progress extends ReadyTimeout up to this
	commitTimeout  = 10 * time.Second       // the successor's wait for commit, after ready
	servingTimeout = 5 * time.Second        // commit → serving
	confirmTimeout = 10 * time.Second       // the successor's wait for confirm, after probation
	barrierTimeout = 5 * time.Second        // the service manager reads what it was told
	checkTimeout   = 2 * time.Second        // the end of Check's ctx → its answer
	hurryTimeout   = 10 * time.Second       // hurry → the successor ends its predecessor
	exitTimeout    = 2 * time.Second        // a failed successor ends by itself, or is killed
	stopTimeout    = 500 * time.Millisecond // the same when the service stops
	killTimeout    = 5 * time.Second        // the kernel reaps what was killed, or is given up on
	secondLook     = 100 * time.Millisecond // see attempt.expire
)

// Options configures an Upgrader. The zero value is ready to use.
type Options struct {
	// PIDFile is the path of the file that names the committed process; empty:
	// none. It is locked with flock(2) for the life of the service, and New fails
	// with a *PIDFileHeldError if another instance has it. Unix only.
	PIDFile string

	// ReadyTimeout is how long a successor may take from hello to ready; 0:
	// DefaultReadyTimeout. Progress starts it anew, for 10 minutes in all. Before
	// that, Preflight may take as long.
	ReadyTimeout time.Duration

	// Probation is how long this process can take the service back after the
	// successor has begun to serve; 0: DefaultProbation; negative: none.
	Probation time.Duration

	// Check, if not nil, is called once during probation, in a goroutine of the
	// old process. Its gate is closed by then, so a request to the service's own
	// address reaches the new process. ctx ends with probation. An error rolls
	// back, and so does no answer 2 s after the end of ctx.
	Check func(ctx context.Context) error

	// DrainTimeout is how long this process may drain after Done is closed before
	// Hurry is closed; 0: DefaultDrainTimeout; negative: without limit. After an
	// upgrade the successor ends it 10 s later.
	DrainTimeout time.Duration

	// MaxDraining is how many replaced generations may drain at once; 0:
	// DefaultMaxDraining; negative: without limit. One more, and the oldest is
	// told to hurry.
	MaxDraining int

	// Executable is the file to execute, looked up again at each upgrade; empty:
	// as this process was invoked, made absolute by New. A symbolic link is
	// followed at each upgrade.
	Executable string

	// Preflight, if not nil, is called at each upgrade before anything is started,
	// in a goroutine of its own, to say whether the file may be executed. An error
	// fails the attempt, and so do a panic and no answer in ReadyTimeout; then, and
	// at the end of Upgrade's ctx, ctx ends. PreflightOwner, PreflightSHA256 and
	// PreflightProgram are ready to use, Preflights combines several.
	//
	// What was checked is what is executed. On Linux path is that of an open
	// descriptor, /proc/self/fd/N, good until Preflight returns, and that file is
	// executed whatever then lies at its path; os.Readlink(path) tells its name.
	// On other systems path is the executable's, and the attempt fails if another
	// file has come to lie there. It fails too if the file was written to in the
	// meantime, and if it is a script.
	Preflight func(ctx context.Context, path string) error

	// Args are the successor's arguments after argv[0], which is the executable's
	// path; nil: those of this process.
	Args []string

	// Env is the successor's environment; nil: this process's at the time of the
	// upgrade. Variables of the handover are removed and added.
	Env []string

	// Dir is the successor's working directory; empty: the one in which New found
	// this process, or wherever this process is if that was deleted.
	Dir string

	// ListenConfig opens the sockets that were not handed over; nil: the zero
	// ListenConfig.
	ListenConfig *net.ListenConfig

	// ControlSocket is the path of a unix socket, mode 0600, on which this
	// process's user and root can ask for the status, trigger an upgrade and wait
	// for its verdict, and end probation: with cmd/upgradectl. It is handed over
	// as the other sockets are. Its directory must be writable by nobody else.
	// Empty: none.
	ControlSocket string

	// TakeOver says what happens if this process was not started by a predecessor
	// and another one serves at ControlSocket: TakeOverAuto, the default, takes its
	// sockets and replaces it, on the same way as a successor that it has started.
	// New fails with ErrAborted if that process refuses, because an upgrade is under
	// way for example, or says nothing for 10 s. It needs ControlSocket.
	TakeOver TakeOver

	// Standby makes this process wait in Ready until it is promoted, or until the
	// process that serves at ControlSocket dies, and all that could take its place:
	// then it commits itself. It serves at once if there is nobody to stand by for.
	// It implies that it takes over, and needs ControlSocket, and Linux. The
	// environment variable UPGRADER_STANDBY=1 sets it.
	Standby bool

	// StateChecksum adds a CRC-32C to what SetState hands on, which State compares.
	// It guards against faults of memory and takes about a second for 4 GiB, in
	// either process.
	StateChecksum bool

	// Version is what Status says of this build; empty: the main module's version,
	// from the build information.
	Version string

	// OnEvent, if not nil, is called for each Event, in order, from one goroutine.
	// It delays nothing. If it falls behind by 256 events it is called no more.
	OnEvent func(Event)

	// Logger receives at most ten records of level info or above in the course of
	// an upgrade; nil: none.
	Logger *slog.Logger
}

// withDefaults returns o with its zero values replaced, or says what is wrong.
func (o Options) withDefaults() (Options, error) {
	fill(&o.ReadyTimeout, DefaultReadyTimeout)
	fill(&o.Probation, DefaultProbation)
	fill(&o.DrainTimeout, DefaultDrainTimeout)
	fill(&o.MaxDraining, DefaultMaxDraining)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ReadyTimeout < 0 {
		return o, fmt.Errorf("negative ReadyTimeout %v: want a positive duration, or 0 for %v", o.ReadyTimeout, DefaultReadyTimeout)
	}
	if o.Check != nil && o.Probation < 0 {
		return o, fmt.Errorf("a Check with Probation %v: it runs during probation, want a positive one", o.Probation)
	}
	if o.ControlSocket == "" && (o.Standby || o.TakeOver == TakeOverRequire) {
		return o, errors.New("a Standby and TakeOverRequire find the process that serves by its ControlSocket: set it")
	}
	if o.Standby && o.TakeOver == TakeOverNever {
		return o, errors.New("a Standby with TakeOverNever: it takes over")
	}
	if o.PIDFile != "" {
		path, err := filepath.Abs(o.PIDFile)
		if err != nil {
			return o, fmt.Errorf("pidfile %q: %w", o.PIDFile, err)
		}
		o.PIDFile = path
	}
	return o, nil
}

func fill[T int | time.Duration](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

// Upgrader replaces the running process with the binary that lies on disk. All
// its methods may be called from several goroutines at once.
type Upgrader struct {
	options    Options
	log        *slog.Logger
	generation atomic.Int64 // written by run, once New has returned
	executable executable
	sockets    sockets
	states     states
	hooks      func(point string) // tests stop, crash and hang a process here

	requests chan request
	readies  chan chan<- error
	stops    chan stopRequest
	says     chan string
	orders   chan order
	looks    chan chan<- Status
	joins    chan *stranger
	enlisted chan *standby
	words    chan standbyWord
	turns    chan *os.File

	answering sync.RWMutex // held for reading while a client is to be answered

	bus      bus
	count    atomic.Pointer[func() int] // see CountConnections
	build    string                     // version and revision
	gone     chan struct{}              // closed by run at its end, after farewell is set
	farewell Status                     // the last one

	triggers atomic.Pointer[[]os.Signal] // that ask for an upgrade; nil: none

	turnIsOurs bool // this process has made the lock of the standbys, although it has a predecessor

	isInit bool // this is PID 1, and with it its PID namespace ends

	committed atomic.Bool          // see state.committed; written by run
	successor atomic.Pointer[peer] // takes connections; written by run, before done is closed
	done      chan struct{}        // closed by run, after err is set
	err       error                // why done was closed
	hurry     chan struct{}        // closed by hurryUp
	hurryOnce sync.Once
	alone     chan struct{} // closed by run: no predecessor is left

	manager       manager    // run's, once New has returned
	kept          []*os.File // see keepSockets
	pidfile       *pidfile   // run's, and launch's during an attempt's first phase
	pidfileShared bool       // it was inherited
}

// request is one call of Upgrade, or a signal.
type request struct {
	ctx     context.Context
	reply   chan<- error // has room for the answer
	promote bool         // by a standby, or not at all
	swap    bool         // this build stands by afterwards

	stranger *stranger                                 // nil: the successor is started
	carrier  func(context.Context) (*successor, error) // nil: run's
}

// stopRequest is one reason to stop this process.
type stopRequest struct {
	service bool   // whichever process hears it, the service stops
	failure string // why this process cannot take over, or go on as the successor
}

func (s stopRequest) reason() string {
	if s.failure == "" {
		return "it was stopped"
	}
	return s.failure
}

// New makes this process one that can be upgraded. Call it first in main,
// before any subprocess is started: it takes the descriptors that were
// inherited from a predecessor or a service manager, and unsets the variables
// that name them.
//
// In a successor it says hello and waits for the predecessor's manifest, 10 s
// at most; a process that takes over waits longer while it is told that the states
// are being written, or that an upgrade is under way (SetState). It fails with
// ErrAborted if the predecessor has given up; then the process is to exit. A
// predecessor that has died makes no difference.
func New(o Options) (*Upgrader, error) {
	u, err := open(o, nil)
	if err != nil {
		return nil, fmt.Errorf("upgrader: %w", err)
	}
	return u, nil
}

// open is New with hooks for tests.
func open(o Options, hooks func(string)) (*Upgrader, error) {
	stoodBy := o.standbyFromEnv()
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	u := newUpgrader(o)
	u.hooks, u.isInit = hooks, os.Getpid() == 1
	if u.executable, err = resolveExecutable(o.Executable, os.Args[0]); err != nil {
		return nil, err
	}
	l, err := u.inherit()
	if err != nil {
		return nil, err
	}
	u.generation.Store(int64(l.generation))
	u.openManager(l)
	if err := u.openTurn(l); err != nil {
		return nil, l.giveUp(err)
	}
	if stoodBy != "" && o.Executable == "" {
		u.executable.file = stoodBy
	}
	if l.executable != "" && o.Executable == "" {
		// A link may lead elsewhere since the file was opened: argv[0] is no claim
		// that needs proof, the predecessor says so.
		u.executable.file = l.executable
	}
	former, err := u.openPIDFiles(l)
	if err != nil {
		return nil, l.giveUp(err)
	}
	r := &run{
		Upgrader: u, former: former, attempt: &attempt{}, carrier: u.launch,
		since: time.Now(), counters: l.manifest.Counters, logName: logName(), parting: wire.Moved{},
		turn: l.turn, await: u.awaitTurn,
		orphaned: supervisorEnds(os.LookupEnv, os.Getppid()),
	}
	if l.conn != nil {
		r.pred = predecessor{peer: newPeer(l.conn, l.pid, u.adopt), manifest: l.manifest, end: l.end()}
	} else {
		close(u.alone)
	}
	if err := u.openControl(); err != nil {
		close(u.gone) // run has not begun
		return nil, l.giveUp(err)
	}
	if o.OnEvent != nil {
		go u.deliver(u.bus.follow())
	}
	go r.loop()
	return u, nil
}

// openManager finds out who manages this service, and takes the sockets that
// come from there.
func (u *Upgrader) openManager(l *legacy) {
	if l.isFirst() {
		u.warnOfParent()
		u.manager.ping() // with Type=exec and simple the watchdog does not wait for READY=1
		return
	}
	u.manager = findManager(os.LookupEnv, false, u.log)
	if _, found := os.LookupEnv(envWatchdog); found {
		_ = os.Setenv(envWatchdogPID, strconv.Itoa(os.Getpid())) // both are valid
	}
}

func newUpgrader(o Options) *Upgrader {
	u := &Upgrader{
		options:  o,
		log:      o.Logger,
		sockets:  sockets{named: map[string]*socket{}, changed: make(chan struct{}, 1)},
		states:   newStates(),
		requests: make(chan request),
		readies:  make(chan chan<- error),
		stops:    make(chan stopRequest),
		says:     make(chan string),
		orders:   make(chan order),
		looks:    make(chan chan<- Status),
		joins:    make(chan *stranger),
		enlisted: make(chan *standby),
		words:    make(chan standbyWord),
		turns:    make(chan *os.File),
		gone:     make(chan struct{}),
		build:    build(o.Version),
		done:     make(chan struct{}),
		hurry:    make(chan struct{}),
		alone:    make(chan struct{}),
	}
	u.generation.Store(1)
	return u
}

// openPIDFiles takes over the predecessor's pidfile. If this build keeps
// another one, or none, the predecessor's is returned as former: it is removed
// once there is no way back.
func (u *Upgrader) openPIDFiles(l *legacy) (former *pidfile, err error) {
	path := u.options.PIDFile
	if l.turn != nil {
		return nil, nil // not before it is promoted
	}
	if l.pidfile != nil {
		was := l.manifest.PIDFile
		if was == "" {
			was = path // the predecessor was gone before it could say
		}
		if was != "" {
			if former, err = inheritPIDFile(was, l.pidfile); err != nil {
				return nil, err
			}
		}
		if was == path {
			u.pidfile, u.pidfileShared = former, true
			return nil, nil
		}
	}
	if path != "" {
		u.pidfile, err = openPIDFile(path)
	}
	return former, err
}

// Generation is 1 for the first process and one more for each successor.
func (u *Upgrader) Generation() int { return int(u.generation.Load()) }

// Progress tells the predecessor that this process, not ready yet, is getting
// there: ReadyTimeout starts anew, up to 10 minutes in all. The text is what an
// operator reads if the upgrade fails. Without a predecessor a service manager
// is told the same (sd_notify(3)), so that it waits longer for the start. It
// does not block.
func (u *Upgrader) Progress(text string) {
	select {
	case u.says <- text:
	case <-u.done:
	}
}

// failed lets the predecessor know of an error that will likely be the last.
func (u *Upgrader) failed(err error) error {
	u.Progress(err.Error())
	return err
}

// Ready says that this process could serve, and blocks until it is committed.
// On nil this process is the server: the gates are open and the pidfile names
// it. That is at once if there is no predecessor, or no longer one.
//
// The error is ErrAborted if the predecessor gives this process up, or says
// nothing for 10 s; ErrStopped or ErrUpgraded if Done is closed; or one of the
// pidfile, after which Ready can be called again. Further calls return what
// the first one did.
func (u *Upgrader) Ready() error {
	reply := make(chan error, 1)
	select {
	case u.readies <- reply:
		return <-reply
	case <-u.done:
		return u.err
	}
}

// Upgrade replaces this process, and blocks until there is a verdict. On nil
// the successor serves and is confirmed, and knows it unless it says nothing for a
// second; Done is closed, and this process is to drain and exit. On an error this process serves on as if nothing had
// happened, and a later call may succeed.
//
// The error is a *SuccessorError for an attempt that was made; ErrNotReady,
// ErrBusy, ErrUpgraded or ErrStopped, with nothing started, if none could be;
// ErrInit in PID 1; ErrNotSupported on Windows. Until the successor is
// committed, the end of ctx gives the attempt up; afterwards it ends only the
// wait, and the error is that of ctx.
func (u *Upgrader) Upgrade(ctx context.Context) error {
	if !supported {
		return ErrNotSupported
	}
	return u.replace(request{ctx: ctx})
}

// promote is Upgrade by the first standby: the error is ErrNoStandby if none is
// ready.
func (u *Upgrader) promote(swap bool) error {
	return u.replace(request{ctx: context.Background(), promote: true, swap: swap})
}

// replace waits for the verdict on an attempt.
func (u *Upgrader) replace(req request) error {
	reply := make(chan error, 1)
	req.reply = reply
	select {
	case u.requests <- req:
		return <-reply
	case <-u.done:
		return u.err
	case <-req.ctx.Done():
		return context.Cause(req.ctx)
	}
}

// trigger is Upgrade for a signal: the verdict is in the log.
func (u *Upgrader) trigger(ctx context.Context) {
	if !supported {
		return
	}
	select {
	case u.requests <- request{ctx: ctx, reply: make(chan error, 1)}:
	case <-u.done:
		u.log.Debug("upgrade refused", "pid", os.Getpid(), "err", u.err)
	case <-ctx.Done():
	}
}

// Stop ends the service, deliberately: after it, Done is closed with
// ErrStopped, and the process is to drain and exit. The pidfile and the paths
// of unix sockets are removed. During probation the other process stops too.
// It blocks until then, about a second at most: an upgrade that is under way
// ends first. In a draining or stopped process it closes Hurry.
//
// In a successor that is not committed it ends this process only, and the
// predecessor serves on. Do not defer Stop in main: a program that fails gives
// the service back by exiting, or by Fail.
func (u *Upgrader) Stop() { u.end(stopRequest{}) }

// Fail says why this process cannot be the server, and stops it. The
// predecessor serves on, or again if this process is on probation, and reports
// err. A successor on probation is confirmed, because there is no way back to
// this process. Without another process that could serve, it is Stop.
func (u *Upgrader) Fail(err error) {
	text := "no reason given"
	if err != nil {
		text = err.Error()
	}
	u.end(stopRequest{failure: text})
}

func (u *Upgrader) end(s stopRequest) {
	select {
	case <-u.done:
		u.hurryUp()
		return
	default:
	}
	select {
	case u.stops <- s:
		<-u.done
	case <-u.done:
	}
}

// Done is closed when this process is to drain and exit, after an upgrade or a
// stop. It never opens again. Err says why.
func (u *Upgrader) Done() <-chan struct{} { return u.done }

// Err returns nil while Done is open; then ErrUpgraded, ErrStopped, ErrAborted
// or ErrRolledBack.
func (u *Upgrader) Err() error {
	select {
	case <-u.done:
		return u.err
	default:
		return nil
	}
}

// Hurry is closed when a drain is to be cut short: DrainTimeout has passed,
// more than MaxDraining generations drain, or Stop or a stop signal came a
// second time.
func (u *Upgrader) Hurry() <-chan struct{} { return u.hurry }

// Wait blocks until the generations before this one have ended, or Hurry is
// closed. Call it last in main, after this process has drained: an older one
// that still drains hands its connections over through its successor, and hears
// from it when to hurry. Who has asked for something on the control socket gets
// the answer. In a process that has no predecessor any more, and owes nobody an
// answer, it returns at once.
func (u *Upgrader) Wait() {
	select {
	case <-u.alone:
	case <-u.hurry:
	}
	if u.Err() != nil {
		u.answered()
	}
}

func (u *Upgrader) hurryUp() { u.hurryOnce.Do(func() { close(u.hurry) }) }

func (u *Upgrader) isCommitted() bool { return u.committed.Load() }

// reach lets a test act at a point in the course of an upgrade.
func (u *Upgrader) reach(point string) {
	if u.hooks != nil {
		u.hooks(point)
	}
}
