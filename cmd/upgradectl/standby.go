package main

import "github.com/go-handover/handover/internal/supervise"

const standbyText = `Standby runs COMMAND, a server with a control socket, as a standby: it gets ready,
and waits. It becomes the server when the process that serves is told to upgrade,
or to promote it, and when that process dies, however it dies: no connection is
refused then, and nothing has to warm up. If nobody serves, it serves at once, so
that the same command line is for all processes of a service.

It keeps one there. If the standby ends it starts COMMAND again, 100ms later, and
each time twice as much up to 30s; a run of 10s begins anew. So it does if the
process has been promoted, and dies, or is replaced by a standby from elsewhere:
the next one stands by for whoever serves then. It ends, too, if the process ends
because the service was told to stop: it has said STOPPING=1 (sd_notify(3)), as
package upgrader does, and its exit code is 0. That, and nothing else, is what
-restart unless-stopped means.

COMMAND is started with UPGRADER_STANDBY=1, which does what Options.Standby does.
Otherwise this is upgradectl supervise: it passes signals on to the process that it
keeps, follows that when it is upgraded, and has the same flags and exit codes. But
it stores no sockets: another process has them.

Of a COMMAND that is replaced on disk a standby knows nothing. To deploy, put the
new one in place, stop this and run it again, and promote.`

const standbyExample = `  exec upgradectl standby -- /usr/local/bin/app -listen :8080 -control /run/app/control
  upgradectl standby -ready-fd 3 -- app -control /run/app/control`

var standingBy = keeping{
	name:  "standby",
	short: "keep a process that takes over at once when the server dies or is told to",
	text:  standbyText, example: standbyExample,
	config: supervise.Config{Restart: supervise.UnlessStopped, Env: []string{"UPGRADER_STANDBY=1"}, NoStore: true},
}
