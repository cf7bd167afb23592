// Package upgrader lets a running server replace itself with the binary that
// now lies on disk, and nobody who is connected to it notices.
//
// A program makes an Upgrader first, opens its sockets through it, says when it
// is ready, and drains when it is told:
//
//	u, err := upgrader.New(upgrader.Options{PIDFile: "/run/app/app.pid"})
//	ln, err := u.Listen(ctx, "http", "tcp", ":8080")
//	err = u.HandleSignals(ctx, upgrader.Signals{})
//	go serve(ln)
//	err = u.Ready()
//	<-u.Done()
//	// finish what is under way, until u.Hurry() at the latest
//	u.Wait() // and exit
//
// An operator puts the new binary in place with rename(2) and sends SIGUSR1 to
// the process that the pidfile names. That process starts the new one with its
// listening sockets as inherited descriptors, waits until it is ready, makes it
// the server, watches it for a while, and drains.
//
// # Lifecycle
//
//	old process (predecessor)              new process (successor)
//	─────────────────────────              ───────────────────────
//	serving
//	│ SIGUSR1: prepare, fork, exec ──────▶ New: hello
//	upgrading       manifest ────────────▶ Listen, warm up
//	│                                      Ready: ready, and wait
//	│ pidfile renamed, commit ───────────▶ gate opens
//	│ gate closes  ◀──────────── serving   on probation
//	probation                              │
//	│ 5 s without a fault: confirm ──────▶ serving
//	Done is closed: drain, exit
//
// Whatever goes wrong before confirm, the old process serves on, or serves
// again: its sockets were open all the time, so connections waited in the
// kernel's queue and none was refused. If the old process dies, at any moment,
// the new one takes over by itself. The whole state machine is in state.go.
//
// # Words
//
//	old, new process       the one that runs now, and the one that is taking over; seen from
//	                       inside: predecessor and successor. They need not be parent and child
//	generation             a number: 1 for the first process, +1 for each successor
//	socket                 a listening socket or packet connection with a name, which can be
//	                       handed over
//	inherit                to receive a socket from the predecessor, by name
//	take over              to become the successor of a process that has not started this one
//	handover channel       one connected unix stream socket between predecessor and successor;
//	                       its closing is how each learns of the other's death
//	ready                  the successor says: I could serve
//	commit                 the predecessor says: you are the server now
//	gate                   what stands before Accept in both processes: closed in the successor
//	                       until commit, closed in the predecessor after it
//	probation              the time after commit in which the predecessor still holds its sockets
//	                       and takes the service back if the successor dies
//	confirm                the end of probation: there is no way back
//	drain                  to finish work in flight after Done is closed
//	standby                a successor that is ready and waits for its commit, or for the death of
//	                       the process that serves and of all that could take its place
//	hand a connection over to give an established, idle connection to the successor, whose Accept
//	                       returns it
//	hurry                  a drain is to be cut short
//	state                  what the program knows, handed on by name as bytes (SetState, State);
//	                       delta: what has changed in it between its start and commit
//
// # Invariants
//
//   - At any moment at most one process is committed, and the pidfile names it.
//   - For an instant at commit both processes accept; at no instant does nobody.
//   - Upgrade returns nil ⇒ the successor is confirmed ⇒ Done is closed ⇒ Err is set.
//   - Every wait has a limit, and its end has one consequence, which the
//     documentation of what waits names.
//   - Nothing leaks into a subprocess: descriptors are close-on-exec, and New
//     unsets the variables.
//   - The library never exits the process, keeps no package state and starts
//     nothing that outlives its Upgrader, but for the successor.
//
// # Who starts the successor
//
// By default the predecessor does. A process that somebody else has started, and
// that has the same Options.ControlSocket, takes over from the one that serves
// there (Options.TakeOver), through the same states and with the same limits. With
// Options.Standby it waits in Ready until a trigger promotes it, or until the
// process that serves has died. Who has an abort to obey and does not is ended,
// whoever has started it.
//
// # Service managers
//
// A process whose environment has NOTIFY_SOCKET tells the manager what
// sd_notify(3) has words for, while it is the main process: READY=1 when it
// serves, RELOADING=1 when an upgrade begins, MAINPID= of the successor when it
// is confirmed, READY=1 with STATUS= and ERRNO= when an upgrade failed,
// EXTEND_TIMEOUT_USEC= on Progress, WATCHDOG=1 at half of WATCHDOG_USEC,
// STOPPING=1 when the service stops. It stores its sockets there (FDSTORE=1), and
// the first process takes what LISTEN_FDS says is for it (sd_listen_fds(3)).
// Where the parent is known to reap what it has not started, systemd or
// upgradectl supervise, the successor is a sibling of its predecessor.
//
// # Platforms
//
// Linux is complete. On macOS and the BSDs a successor recognises its
// predecessor by getppid(2), and what a hung process has still said may be
// lost. On Windows the server runs and Upgrade returns ErrNotSupported.
package upgrader
