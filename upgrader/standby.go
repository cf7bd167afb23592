package upgrader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/go-handover/handover/internal/fd"
	"github.com/go-handover/handover/internal/wire"
)

// A standby is a successor that is ready and waits for its commit, for days if
// need be. The process that serves keeps them in a queue: the first is the
// successor of the next upgrade.
//
// If the process that serves dies, however it dies, one standby commits itself.
// Which one, the kernel decides: who serves holds a lock that every process of
// its line shares, turn, and each standby waits for it with an opening of its
// own. So there is no moment, and no order of deaths, in which two get it or
// nobody does.

// turnName is the lock's name among the files that go from generation to
// generation.
const turnName = ".turn"

// maxStandbys is how many processes one queue has.
const maxStandbys = 16

// ---- in the process that serves ----

// standby is one in the queue. A goroutine relays its words to run until it is
// promoted.
type standby struct {
	*successor
	since    time.Time
	ready    bool
	deltas   bool          // it wants to know what has changed in the states since
	promoted chan struct{} // closed when run reads its words itself
	relayed  chan struct{} // closed when that goroutine has ended
}

// process is what Status says of it: the first one is generation next, if it is
// promoted.
func (st *standby) process(next int) wire.Process {
	p := wire.Process{Generation: next, PID: st.pid, Build: st.build, State: "standby", Since: st.since}
	if !st.ready {
		p.State = "standby, not ready"
	}
	return p
}

// standbyWord is what one of them says, or with nil its end.
type standbyWord struct {
	from *standby
	m    wire.Message
}

// openTurn makes sure that this process holds the lock for which standbys wait,
// if there can be any.
func (u *Upgrader) openTurn(l *legacy) error {
	if u.sockets.claim(turnName) || l.turn != nil || u.options.ControlSocket == "" {
		return nil // the second: it waits for it itself
	}
	f, err := fd.NewTurn()
	if errors.Is(err, errors.ErrUnsupported) {
		return nil // no standby will be taken
	}
	if err != nil {
		return err
	}
	u.sockets.hold(turnName, f)
	u.turnIsOurs = l.generation > 1
	return nil
}

// enlist gives a standby all that it needs, beside the loop.
func (r *run) enlist(s *stranger) {
	if len(r.standbys) >= maxStandbys {
		go s.refuse(fmt.Errorf("%d processes stand by already", maxStandbys))
		return
	}
	// A predecessor that has another lock, or none, could take the service back, and
	// whoever waits for this one would serve beside it.
	if !r.state.committed() || r.state == onProbation && r.turnIsOurs {
		r.log.Debug("standby is to come again", "pid", os.Getpid(), "standby", s.pid, "state", r.state.String())
		go s.sendOn()
		return
	}
	m := r.manifest(nil, r.counters)
	go func() {
		n, err := r.giveStandby(s, m)
		if err != nil {
			level := slog.LevelWarn
			if isGone(err) { // it has gone elsewhere, or it is this process, whose turn has come
				level = slog.LevelDebug
			}
			r.log.Log(context.Background(), level, "standby not taken", "pid", os.Getpid(), "standby", s.pid, "err", err)
			s.refuse(err)
			return
		}
		st := &standby{successor: n, since: time.Now(), promoted: make(chan struct{}), relayed: make(chan struct{})}
		select {
		case r.enlisted <- st:
		case <-r.gone:
			_ = n.Send(r.parting) // if it is gone, it needs not come again
			st.close()
		}
	}()
}

func (u *Upgrader) giveStandby(s *stranger, m wire.Manifest) (*successor, error) {
	turn, err := u.sockets.file(turnName)
	if err != nil {
		return nil, fmt.Errorf("standby: %w", errors.ErrUnsupported)
	}
	defer turn.Close() // a duplicate
	waiting, err := fd.WaitingFor(turn)
	if err != nil {
		return nil, err
	}
	defer waiting.Close() // the standby has its own
	given, err := u.give(context.Background(), s, m, []extra{{kindTurn, waiting}})
	if err != nil {
		return nil, err
	}
	return u.followStranger(s, given), nil
}

// withoutTurn takes the lock itself out of what a standby gets: it would hold it.
func withoutTurn(meta []wire.Socket, files []*os.File) ([]wire.Socket, []*os.File) {
	at := slices.IndexFunc(meta, func(s wire.Socket) bool { return s.Name == turnName })
	if at < 0 {
		return meta, files
	}
	return append(slices.Clone(meta[:at]), meta[at+1:]...), append(slices.Clone(files[:at]), files[at+1:]...)
}

// queue takes a standby that has all it needs.
func (r *run) queue(st *standby) {
	go r.relay(st)
	if !r.state.committed() && r.state != probation {
		r.sendAway(st, r.parting)
		return
	}
	r.standbys = append(r.standbys, st)
	r.log.Info("standby", "pid", os.Getpid(), "standby", st.pid, "queue", len(r.standbys))
	r.checkStandbys() // something may have changed while it was given what there was
}

func (r *run) relay(st *standby) {
	defer close(st.relayed)
	for {
		select {
		case m := <-st.inbox: // nil at its end
			select {
			case r.words <- standbyWord{st, m}:
			case <-r.gone:
				return
			}
			if m == nil {
				return
			}
		case <-st.promoted:
			return
		case <-r.gone:
			return
		}
	}
}

// standbySaid is what a standby says while it waits, or its end.
func (r *run) standbySaid(w standbyWord) {
	st := w.from
	if !slices.Contains(r.standbys, st) {
		return // it was sent away, or promoted: its end is heard there
	}
	switch m := w.m.(type) {
	case wire.Ready:
		st.ready, st.deltas = true, m.Deltas
		r.log.Info("standby is ready", "pid", os.Getpid(), "standby", st.pid)
	case wire.Progress:
		r.log.Debug("standby", "pid", os.Getpid(), "standby", st.pid, "text", m.Text)
	case wire.Failed:
		r.log.Warn("standby is gone", "pid", os.Getpid(), "standby", st.pid, "err", m.Text)
		r.dropStandby(st)
	default:
		r.log.Info("standby is gone", "pid", os.Getpid(), "standby", st.pid)
		r.dropStandby(st)
	}
}

func (r *run) dropStandby(st *standby) {
	r.standbys = slices.DeleteFunc(r.standbys, func(other *standby) bool { return other == st })
	st.close()
}

// close ends what this process knows of a standby that is not promoted.
func (st *standby) close() {
	st.ignore()
	_ = st.Close() // nothing more is said
	if st.stranger.pidfd != nil {
		_ = st.stranger.pidfd.Close() // nobody waits for its end
	}
}

// sendAway tells a standby where to go.
func (r *run) sendAway(st *standby, m wire.Message) {
	_ = st.Send(m) // if it is gone, all the better
	r.dropStandby(st)
}

// checkStandbys sends those away that do not have what this process has now.
func (r *run) checkStandbys() {
	if len(r.standbys) == 0 {
		return
	}
	have := r.sockets.metas()
	for _, st := range slices.Clone(r.standbys) {
		if !sameSockets(have, st.given) {
			r.sendAway(st, wire.Moved{})
		}
	}
}

// sameSockets compares what two processes hold by name.
func sameSockets(a, b []wire.Socket) bool {
	if len(a) != len(b) {
		return false
	}
	for _, s := range a {
		if !slices.Contains(b, s) {
			return false
		}
	}
	return true
}

// leaveTurn lets go of the lock, if this process holds it: whoever is told that
// the service stops does not take it.
func (r *run) leaveTurn(e event) {
	if e == stopAsked && !r.failing {
		r.parting = wire.Stopping{}
	}
	for _, st := range slices.Clone(r.standbys) {
		r.sendAway(st, r.parting)
	}
	r.warn("turn", r.sockets.letGo(turnName))
}

// firstStandby is the one to promote, nil if it is not ready. None behind it is
// taken: they queue in order.
func (r *run) firstStandby() *standby {
	if len(r.standbys) == 0 || !r.standbys[0].ready {
		return nil
	}
	return r.standbys[0]
}

// promote makes a standby the successor of an attempt.
func (r *run) promote(st *standby, req request) {
	r.standbys = slices.Delete(r.standbys, 0, 1)
	close(st.promoted)
	req.stranger = st.stranger
	locks := wire.Locks{Turn: true, Generation: r.Generation() + 1, Counters: r.counters}
	req.carrier = func(ctx context.Context) (*successor, error) { return r.promoted(ctx, st, locks) }
	r.upgrade(req)
}

// promoted gives the standby what only the committed process holds. It was
// ready long ago.
func (u *Upgrader) promoted(ctx context.Context, st *standby, m wire.Locks) (*successor, error) {
	u.reach("prepare")
	<-st.relayed
	if err := u.sendLocks(st, m); err != nil {
		_ = st.Send(wire.Abort{Reason: err.Error()}) // if it is gone, nobody asks
		st.close()
		return nil, u.strangerError(PhasePrepare, st.pid, err)
	}
	u.reach("started")
	st.waits = true
	st.wants = st.deltas && u.states.takeIfFree(ctx, st.stranger.written)
	return st.successor, nil
}

// sendLocks sends the pidfile that is to name the standby, and the lock.
func (u *Upgrader) sendLocks(st *standby, m wire.Locks) error {
	turn, err := u.sockets.file(turnName)
	if err != nil {
		return err
	}
	defer turn.Close() // a duplicate
	files := []*os.File{turn}
	next, err := u.nextPIDFile(st.pid)
	if err != nil {
		return err
	}
	if next != nil {
		m.PIDFile, files = true, []*os.File{next, turn}
	}
	numbers, err := numbersOf(files)
	if err != nil {
		return err
	}
	return st.Send(m, numbers...)
}

// standByAgain starts this very build, whatever lies at its path now, as a
// standby of the successor: so going back is as fast.
func (u *Upgrader) standByAgain() error {
	files, closeNull, err := stdio()
	if err != nil {
		return err
	}
	defer closeNull()
	pidfd, child := -1, !fd.CanPollProcesses() || !reapsStrangers(os.LookupEnv, os.Getppid())
	p, err := os.StartProcess("/proc/self/exe", append([]string{u.executable.path()}, u.args()...), &os.ProcAttr{
		Dir: u.executable.dir(u.options.Dir), Files: files, Sys: fd.Started(&pidfd, !child),
		Env: append(without(withoutOurs(u.env()), envStandby), envStandby+"="+u.executable.path()),
	})
	if err != nil {
		return err
	}
	go func() { _, _ = newStarted(p, pidfd, child).wait() }()
	return nil
}

// ---- in the standby ----

// standsBy reports that this process waits for its turn.
func (r *run) standsBy() bool { return r.turn != nil }

// awaitTurn waits for the end of whoever serves, and of all that could serve in
// its place. It ends with them, perhaps long after this process has become the
// server itself; then the lock is for the next.
func (u *Upgrader) awaitTurn(turn *os.File) {
	err := fd.Await(turn)
	if err == nil {
		select {
		case u.turns <- turn:
			return
		case <-u.gone:
		}
	}
	_ = turn.Close() // nothing was written
}

// itsTurn is this process's turn to serve, unless it is over.
func (r *run) itsTurn(turn *os.File) {
	if r.turn != turn || r.state.final() {
		_ = turn.Close() // the next one's
		return
	}
	r.sockets.hold(turnName, turn)
	r.came = true
	if !r.pred.alive() { // else its last words come first
		r.takeTurn()
	}
}

// takeTurn makes this process the server: its predecessor, and all who could
// have taken its place, are dead.
func (r *run) takeTurn() {
	r.turn = nil
	r.lookNoMore()
	r.beAlone()
	r.takePIDFile()
	if r.state == waiting {
		r.succeed()
	}
}

// pidfileTries is how often, at intervals of againTimeout, a standby that serves
// tries to get the pidfile's lock. A process that dies lets go of its files one
// after the other, and its turn may have come before.
const pidfileTries = 50

// takePIDFile makes the pidfile this process's, now or in a moment.
func (r *run) takePIDFile() {
	r.unnamed = nil
	switch {
	case r.state.final():
		return
	case r.attempt.underWay(): // the pidfile is that one's
		r.unnamed = time.After(againTimeout)
		return
	}
	p, err := succeedPIDFile(r.options.PIDFile)
	held := (*PIDFileHeldError)(nil)
	if r.tries++; errors.As(err, &held) && r.tries < pidfileTries {
		r.unnamed = time.After(againTimeout)
		return
	}
	r.warn("pidfile not taken", err)
	r.pidfile = p
	if r.state == serving {
		r.warn("pidfile not written", p.install())
	}
}

// waitNoMore: this process's turn is not to come. If it is awaited already, the
// lock is closed when it does.
func (r *run) waitNoMore() {
	if r.turn != nil && !r.awaited {
		_ = r.turn.Close() // nothing was written
	}
	r.turn = nil
}

// beAlone: there is no predecessor any more.
func (r *run) beAlone() {
	select {
	case <-r.alone:
	default:
		close(r.alone)
	}
}

// promotion gives this process what the committed one holds.
func (r *run) promotion(m keys) {
	if !r.standsBy() {
		closeAll(m.files)
		return
	}
	if err := r.hold(m.Locks, m.files); err != nil {
		r.stop(stopRequest{failure: err.Error()})
	}
}

// moved: the predecessor has been replaced, or has other sockets.
func (r *run) moved() {
	if !r.standsBy() || r.state.final() {
		return
	}
	r.pred.ignore()
	_ = r.pred.Close() // nothing more is said
	r.pred = predecessor{manifest: r.pred.manifest}
	r.attachAgain()
}

// attachAgain looks for who serves now, beside the loop.
func (r *run) attachAgain() {
	if r.came {
		r.takeTurn()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan attachment, 1)
	r.attached, r.detach = result, cancel
	go func() {
		l, err := r.attachUnless(ctx, 0, true, again)
		result <- attachment{l, err}
	}()
}

// again reports that the next try may find somebody: one that dies, or whose
// queue is full, says nothing of the one after it.
func again(err error) bool {
	return errors.Is(err, ErrNoPredecessor) || errors.Is(err, ErrTimeout) || errors.Is(err, syscall.EAGAIN)
}

// lookNoMore ends that. Who answers may be this very process by now.
func (r *run) lookNoMore() {
	if r.detach == nil {
		return
	}
	r.detach()
	go func(late <-chan attachment) {
		if a := <-late; a.legacy != nil {
			closeAll(a.legacy.files)
			_ = a.legacy.conn.Close() // nothing was said but hello
		}
	}(r.attached)
	r.attached, r.detach = nil, nil
}

type attachment struct {
	legacy *legacy
	err    error
}

// found is the end of attachAgain.
func (r *run) found(a attachment) {
	r.attached, r.detach = nil, nil
	err := a.err
	if err == nil {
		err = r.compare(a.legacy)
	}
	if err != nil {
		r.giveUp(aborted, err)
		return
	}
	l := a.legacy
	r.generation.Store(int64(l.generation))
	r.waitFor(l.turn)
	r.pred = predecessor{peer: newPeer(l.conn, l.pid, r.adopt), manifest: l.manifest, end: l.end()}
	if r.state == waiting {
		_ = r.pred.Send(wire.Ready{}) // if it is gone, its channel says so next
	}
}

// waitFor makes this process wait for the lock of who serves now. It is the one
// that it has, unless a service manager has started another line of processes.
func (r *run) waitFor(turn *os.File) {
	if turn == nil || sameFile(turn, r.turn) {
		closeAll([]*os.File{turn})
		return
	}
	r.waitNoMore()
	r.turn = turn
	if r.awaited {
		go r.await(turn)
	}
}

// compare says whether this process still has what the one that serves now has,
// and lets go of the duplicates.
func (r *run) compare(l *legacy) error {
	was := map[string]string{}
	for _, m := range r.pred.manifest.Sockets {
		if l.special(m.Kind) == nil && m.State == nil {
			was[m.Name] = m.Kind
		}
	}
	same := true
	for i, m := range l.manifest.Sockets {
		switch {
		case m.Kind == kindProcess:
			l.pidfd, l.files[i] = l.files[i], nil // nothing is written to it
		case m.Kind == kindTurn:
			l.turn, l.files[i] = l.files[i], nil // the same
		case l.special(m.Kind) == nil:
			same = same && was[m.Name] == m.Kind && r.sockets.isSame(m.Name, l.files[i])
			delete(was, m.Name)
		}
	}
	same = same && len(was) == 0
	for _, f := range l.files {
		if f != nil {
			_ = f.Close() // a duplicate
		}
	}
	l.files = nil
	if !same {
		closeAll([]*os.File{l.turn})
		return l.giveUp(fmt.Errorf("%w: the sockets of the service have changed, a standby must start anew", ErrAborted))
	}
	return nil
}

// ready for the case of a standby.
func (r *run) readyToStandBy() {
	r.step(readyWithPredecessor, nil)
	if r.pred.alive() {
		r.sayReady()
		r.pred.limit = nil // it waits for as long as it takes
	}
	r.manager.standingBy(r.Generation())
	r.awaited = true // not before: one that is not ready is not to keep others from serving
	go r.await(r.turn)
	r.reach("ready")
}

// hold takes what a standby that is promoted gets before its commit. From here
// on it is a successor like any other.
func (r *run) hold(m wire.Locks, files []*os.File) error {
	r.waitNoMore()
	if len(files) != m.Descriptors() {
		closeAll(files)
		return errors.New("no descriptor arrived: this process is at RLIMIT_NOFILE")
	}
	r.generation.Store(int64(m.Generation))
	r.counters = m.Counters
	l := &legacy{manifest: r.pred.manifest}
	if m.PIDFile {
		l.pidfile, files = files[0], files[1:]
	}
	if m.Turn {
		r.sockets.hold(turnName, files[0])
	}
	former, err := r.openPIDFiles(l)
	r.former = former
	return err
}

// standbyFromEnv makes this process a standby if whoever started it says so.
func (o *Options) standbyFromEnv() (executable string) {
	v, found := os.LookupEnv(envStandby)
	if !found {
		return ""
	}
	_ = os.Unsetenv(envStandby) // the name is valid
	if on, err := strconv.ParseBool(v); err == nil {
		o.Standby = on
		return ""
	}
	o.Standby = true
	return v
}
