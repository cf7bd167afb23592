#!/bin/sh
# Puts a new binary in the place of the running one, asks the server to replace
# itself, waits for the verdict, and puts the old binary back if it failed.

usage() {
	cat <<'END'
Usage: deploy.sh NEW TARGET PIDFILE

Puts a copy of the binary NEW in the place of TARGET, by rename, with TARGET's
owner and mode. Tells the server that PIDFILE names to replace itself (SIGUSR1),
and waits until the new process has come through its probation. If it does not,
TARGET is the old binary again. After a success TARGET.old is the old binary.

Exit codes:
  0  deployed: the new process serves
  1  failed: the old process serves on, and TARGET is the old binary
  2  busy: another deploy or upgrade is under way; nothing was done
  3  rolled back: the new process served, and failed in its probation; the old
     process serves again, and TARGET is the old binary
  4  no server: PIDFILE is missing, unreadable or stale, or the server ended
  5  wrong usage

Environment:
  DEPLOY_TIMEOUT  seconds to wait for the verdict (90). It must be more than
                  the server's time to get ready and its probation together.

Example:
  deploy.sh build/demo /srv/demo/demo /run/demo.pid || journalctl -u demo -n 20
END
}

say() { echo "deploy: $*" >&2; }

# finish CODE TEXT is the only way out once something was begun.
finish() {
	trap '' HUP INT TERM
	rm -f -- "$copy" "$stamp"
	if [ -n "$progressing" ]; then
		printf '\r\033[K' >&2
	fi
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

interrupted() {
	if [ -n "$signalled" ]; then
		retire
		finish 1 "interrupted: the upgrade goes on; $target is the new binary, $target.old the old one"
	fi
	fail 1 "interrupted: nothing was changed"
}

# progress SECONDS TEXT replaces its last line on a terminal. Elsewhere one
# line in ten seconds is enough.
progress() {
	if [ -t 2 ]; then
		progressing=yes
		printf '\rdeploy: %d s: %s\033[K' "$1" "$2" >&2
	elif [ "$1" -ge "$report_at" ]; then
		report_at=$(($1 + 10))
		say "$1 s: $2"
	fi
}

# inode prints the number of a file's inode, following links.
inode() {
	# shellcheck disable=SC2012 # stat(1) has no portable form; the name is not read
	ls -diL -- "$1" 2>/dev/null | awk 'NR == 1 { print $1 }'
}

alive() { kill -0 "$1" 2>/dev/null; }

# named prints the pid in the pidfile, if it is one.
named() {
	pid=''
	read -r pid _ <"$pidfile" || [ -n "$pid" ] || return 1
	case $pid in
	'' | 0* | *[!0-9]*) return 1 ;;
	esac
	echo "$pid"
} 2>/dev/null

# lock FD takes a lock that lasts as long as this script.
lock() {
	! command -v flock >/dev/null || flock -n "$1"
}

# held reports that somebody has locked the pidfile, as its server has for
# life. A pid that nobody vouches for may be a stranger's by now.
held() {
	! command -v flock >/dev/null || ! flock -ns "$pidfile" true
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

# verdict prints what the pidfile says. Its inode changes when the new process
# is committed, and comes back when it is rolled back, which is possible as
# long as .BASE.prev is there. An attempt that ended without a new process
# gives the old file a new time. Each is looked at twice, because the process
# does not wait between two looks.
verdict() {
	now=$(inode "$pidfile")
	if [ "$now" = "$before" ]; then
		if [ -n "$(find "$pidfile" -newer "$stamp" 2>/dev/null)" ] && [ "$(inode "$pidfile")" = "$now" ]; then
			echo failed
		fi
	elif [ -n "$now" ]; then
		if [ ! -e "$prev" ] && [ "$(inode "$pidfile")" = "$now" ] && alive "$(named)"; then
			echo deployed
		else
			echo committed
		fi
	fi
}

# ended reports that there is no server, and nobody who is about to be one.
ended() { ! alive "$old" && ! alive "$(named)" && [ ! -e "$next" ]; }

case $1 in
-h | --help)
	usage
	exit 0
	;;
esac
if [ $# != 3 ]; then
	usage >&2
	exit 5
fi
new=$1 target=$2 pidfile=$3 limit=${DEPLOY_TIMEOUT:-90}
case $limit in
*[!0-9]*)
	say "DEPLOY_TIMEOUT=$limit: want a number of seconds"
	exit 5
	;;
esac
next=$(dirname -- "$pidfile")/.$(basename -- "$pidfile").next
prev=${next%.next}.prev
copy=$target.new.$$ keep=$target.old.$$
progressing='' signalled='' stamp='' report_at=1
trap interrupted HUP INT TERM

for file in "$new" "$target"; do
	if [ ! -s "$file" ] || [ ! -f "$file" ]; then
		finish 1 "$file is missing, empty, or not a file; nothing was changed"
	fi
done
if [ -L "$target" ]; then
	finish 1 "$target is a symbolic link: name the file that it points to, or flip the link and send SIGUSR1"
fi

old=$(named) || finish 4 "no server: $pidfile does not name one"
alive "$old" || finish 4 "no server: process $old, which $pidfile names, has ended, or is not ours"
held || finish 4 "no server: $pidfile is stale: process $old does not hold it"

exec 8<"$target"
if ! lock 8 || [ "$(inode /dev/fd/8)" != "$(inode "$target")" ]; then
	finish 2 "busy: another deploy of $target is under way"
fi
if [ -e "$next" ] || [ -e "$prev" ]; then
	finish 2 "busy: an upgrade of process $old is under way"
fi

before=$(inode "$pidfile")
if ! stamp=$(mktemp) || ! touch -r "$pidfile" "$stamp"; then
	finish 1 "cannot write a temporary file; nothing was changed"
fi
swap || fail 1 "cannot copy $new to $target; nothing was changed"
# Not both at once: an interruption in between must not put the old file back.
signalled=yes
kill -USR1 "$old" || fail 4 "no server: process $old cannot be signalled; $target is the old binary"

start=$(date +%s) committed='' phase="process $old prepares the new one"
while :; do
	elapsed=$(($(date +%s) - start))
	# Asked before the verdict: what ends in between is seen the next time.
	if ended; then gone=yes; else gone=''; fi
	case $(verdict) in
	deployed)
		retire
		finish 0 "deployed: process $(named) has replaced process $old; $target.old is the old binary"
		;;
	failed)
		if [ -n "$committed" ]; then
			fail 3 "rolled back: process $old serves again; $target is the old binary; the server's log has the reason"
		fi
		fail 1 "failed: process $old serves on; $target is the old binary; the server's log has the reason"
		;;
	committed)
		committed=yes
		phase="process $(named) serves, on probation"
		;;
	esac
	if [ -n "$gone" ]; then
		fail 4 "no server: process $old has ended without a successor; $target is the old binary"
	fi
	if [ "$elapsed" -ge "$limit" ]; then
		fail 1 "no verdict in $limit s (DEPLOY_TIMEOUT); $target is the old binary"
	fi
	if [ "$elapsed" -ge 1 ]; then
		progress "$elapsed" "$phase"
	fi
	sleep 0.05
done
