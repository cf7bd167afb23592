#!/bin/sh
# Puts a new binary in the place of the running one, lets upgradectl upgrade the
# server, and puts the old binary back unless that was a success.

usage() {
	cat <<'END'
Usage: deploy.sh NEW TARGET PIDFILE
       deploy.sh [-socket PATH] NEW TARGET

Puts a copy of the binary NEW in the place of TARGET, by rename, with TARGET's
owner and mode. Then upgradectl tells the server to replace itself, and waits
until the new process has come through its probation. If it does not, TARGET is
the old binary again. After a success TARGET.old is the old binary.

The server is the one that PIDFILE names, or that has opened the control socket
PATH, which UPGRADECTL_SOCKET names where neither is given. Only a control
socket can tell why an upgrade failed.

Exit codes:
  0  deployed: the new process serves
  1  failed: the old process serves on, and TARGET is the old binary
  2  busy: another deploy or upgrade is under way; nothing was done
  3  rolled back: the new process served, and failed in its probation; the old
     process serves again, and TARGET is the old binary
  4  no server: PIDFILE is missing, unreadable or stale, nobody answers on the
     control socket, or the server ended
  5  wrong usage, or no upgradectl

Environment:
  DEPLOY_TIMEOUT     seconds to wait for the verdict (90). It must be more than
                     the server's time to get ready and its probation together.
  UPGRADECTL         upgradectl's path; else it is bin/upgradectl beside this
                     script's directory, or in PATH
  UPGRADECTL_SOCKET  the control socket

Examples:
  deploy.sh -socket /run/demo/control build/demo /srv/demo/demo
  deploy.sh build/demo /srv/demo/demo /run/demo.pid || journalctl -u demo -n 20
END
}

say() { echo "deploy: $*" >&2; }

# finish CODE TEXT is the only way out once something was begun.
finish() {
	trap '' HUP INT TERM
	rm -f -- "$copy"
	code=$1
	shift
	say "$*"
	exit "$code"
}

# fail CODE TEXT puts the old binary back, if it has been replaced.
fail() {
	trap '' HUP INT TERM
	if [ -e "$keep" ] && ! put_back; then
		finish 1 "$2; AND THE OLD BINARY COULD NOT BE PUT BACK: it is $keep"
	fi
	finish "$@"
}

# put_back is mv, which refuses where both names are those of the old binary.
put_back() {
	if [ "$(inode "$keep")" = "$(inode "$target")" ]; then
		rm -f -- "$keep"
	else
		mv -f -- "$keep" "$target"
	fi
}

# retire gives the old binary the name under which an operator looks for it.
retire() {
	trap '' HUP INT TERM
	rm -f -- "$target.old" && mv -f -- "$keep" "$target.old"
}

# shellcheck disable=SC2317 # it is called by trap
interrupted() {
	trap '' HUP INT TERM
	if [ -z "$asked" ]; then
		fail 1 "interrupted: nothing was changed"
	fi
	if [ -n "$!" ]; then
		kill "$!" 2>/dev/null
		wait "$!"
	fi
	retire
	finish 1 "interrupted: the upgrade goes on, if it had begun; $target is the new binary, $target.old the old one"
}

# inode prints the number of a file's inode, following links.
inode() {
	# shellcheck disable=SC2012 # stat(1) has no portable form; the name is not read
	ls -diL -- "$1" 2>/dev/null | awk 'NR == 1 { print $1 }'
}

# find_upgradectl prints its path.
find_upgradectl() {
	if [ -n "$UPGRADECTL" ]; then
		command -v -- "$UPGRADECTL"
	elif [ -x "$repository/bin/upgradectl" ]; then
		echo "$repository/bin/upgradectl"
	else
		command -v upgradectl
	fi
}

# ask ARGUMENT… asks the server.
ask() { "$upgradectl" "$by" "$server" "$@"; }

# own_state prints the state of the process that has sent this status.
own_state() {
	awk -F '"' '/^ *"self": true/ { self = 1 } self && /^ *"state": / { print $4; exit }'
}

# busy reports that an upgrade is under way. Whoever begins one after this has
# looked is noticed by upgradectl; but what it starts may be the new binary.
busy() {
	case $by in
	-pidfile)
		side=$(dirname -- "$server")/.$(basename -- "$server")
		[ -e "$side.next" ] || [ -e "$side.prev" ]
		;;
	*)
		status=$(ask status -json) || finish 4 "no server; nothing was changed"
		[ "$(echo "$status" | own_state)" != serving ]
		;;
	esac
}

# lock FD takes a lock that lasts as long as this script and its upgradectl.
lock() {
	! command -v flock >/dev/null || flock -n "$1"
}

# swap puts a complete copy in the target's place. The target is never missing,
# and its old inode is what the running process executes. Both inodes are
# locked, so that another deploy finds a lock whichever of them it opens; the
# descriptors are for reading, because a file that is open for writing cannot
# be executed.
swap() {
	cp -p -- "$target" "$copy" &&
		cat -- "$new" >"$copy" &&
		{ sync -- "$copy" 2>/dev/null || sync; } &&
		exec 9<"$copy" && lock 9 &&
		ln -- "$target" "$keep" && mv -f -- "$copy" "$target"
}

by='' server=''
case $1 in
-h | --help)
	usage
	exit 0
	;;
-socket | --socket)
	by=-socket server=$2
	shift
	[ $# = 0 ] || shift
	;;
esac
if [ -z "$by" ] && [ $# = 3 ]; then
	by=-pidfile server=$3
elif [ -z "$by" ]; then
	by=-socket server=$UPGRADECTL_SOCKET
fi
case $by$# in
-pidfile3 | -socket2) ;;
*) server='' ;;
esac
if [ -z "$server" ]; then
	usage >&2
	exit 5
fi
new=$1 target=$2 limit=${DEPLOY_TIMEOUT:-90}
case $limit in
*[!0-9]* | 0)
	say "DEPLOY_TIMEOUT=$limit: want a number of seconds"
	exit 5
	;;
esac
repository=$(dirname -- "$0")/..
if ! upgradectl=$(find_upgradectl); then
	say "no upgradectl${UPGRADECTL:+ at $UPGRADECTL}: build it with go build -C $repository/cmd/upgradectl -o ../../bin/ . or name one in UPGRADECTL"
	exit 5
fi
copy=$target.new.$$ keep=$target.old.$$ asked=''
trap interrupted HUP INT TERM

for file in "$new" "$target"; do
	if [ ! -s "$file" ] || [ ! -f "$file" ]; then
		finish 1 "$file is missing, empty, or not a file; nothing was changed"
	fi
done
if [ -L "$target" ]; then
	finish 1 "$target is a symbolic link: name the file that it points to, or flip the link and run upgradectl upgrade"
fi

exec 8<"$target"
if ! lock 8 || [ "$(inode /dev/fd/8)" != "$(inode "$target")" ]; then
	finish 2 "busy: another deploy of $target is under way"
fi
if busy; then
	finish 2 "busy: an upgrade is under way; nothing was changed"
fi
swap || fail 1 "cannot copy $new to $target; nothing was changed"

# Not after ask: an interruption in between must not put the old file back. The
# shell hears of a signal while it waits, but not while it runs a command.
asked=yes
ask upgrade -timeout "${limit}s" >&2 &
wait "$!"
code=$?
case $code in
0)
	retire
	finish 0 "deployed: $target is the new binary, $target.old the old one"
	;;
1) fail 1 "failed: $target is the old binary" ;;
2) fail 2 "busy: $target is the old binary" ;;
3) fail 3 "rolled back: $target is the old binary" ;;
4) fail 4 "no server: $target is the old binary" ;;
5) fail 5 "$upgradectl does not understand deploy.sh: are they of one version? $target is the old binary" ;;
*) fail 1 "no verdict, upgradectl has ended with $code; $target is the old binary" ;;
esac
