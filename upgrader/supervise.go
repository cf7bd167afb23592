package upgrader

// SupervisePID1 lets a server that is process 1, as in a container, be
// upgraded. Process 1 cannot leave without everything else: it becomes a small
// supervisor, and the program runs as its child. Call it at the top of main:
//
//	if code, done := upgrader.SupervisePID1(); done {
//		os.Exit(code)
//	}
//
// In process 1 it starts this program again, with the same arguments and
// environment, and blocks until that and all its descendants have ended. Then
// it returns the exit code of the last process that served, 128 and the number
// if a signal ended that, and true. Signals that process 1 gets go to the
// process that serves. SIGTERM, SIGINT and SIGQUIT stop the server. What has
// not ended 10 seconds after the last process that served is told to end, and
// killed 10 seconds later: older generations that drain.
//
// A process that fails by itself, by an exit code that is not 0 or a signal, is
// started again with its sockets, which the supervisor keeps: after 100 ms,
// and each time twice as much, up to 30 s; a run of 10 s begins anew. So a
// server that cannot start does not end the container: its probes tell.
//
// A program that is deployed into such a container must call it, too: it would
// not find the sockets that were kept, and could not bind their addresses.
//
// In every other process it returns 0 and false at once; in a child of the
// supervisor it takes the sockets that were kept, so it comes before New. A
// supervisor that is not of this package, upgradectl supervise or tini for
// example, is process 1 instead, and then this does nothing.
//
// It needs Linux, and /proc of the process's own pid namespace; elsewhere it
// returns 0 and false.
func SupervisePID1() (code int, done bool) { return supervisePID1() }
