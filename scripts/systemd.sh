#!/bin/bash
# systemd.sh boots a real systemd as process 1 of namespaces of its own, on a
# machine that runs anything else, for the tests. It needs root.
#
#   systemd.sh boot DIR [USR]  prints the pid of process 1 when it takes commands;
#                              units are in DIR/units, USR is laid over /usr
#   systemd.sh end DIR         kills what is inside, and waits until it is gone
#
# A command inside: nsenter -t PID -a systemctl … The network is that of the
# machine, so that clients outside reach what is served inside.
#
# A systemd without a cgroup and a cgroup namespace of its own would move every
# process of the machine into its own scope, and one with the machine's /dev and
# /run would replace what is there. So it gets neither.
set -eu

what=${1:-} dir=${2:-} usr=${3:-}
[ -n "$dir" ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
dir=$(realpath "$dir")

root=/sys/fs/cgroup
[ "$(stat -fc %T $root)" = cgroup2fs ] || root=$root/unified
cgroup=$root/handover-$(printf %s "$dir" | cksum | cut -d ' ' -f 1)

# The script that becomes process 1. Its argument is the directory to lay over
# /usr, if there is one.
read -rd '' init <<'INIT' || true
set -eu
dir=$1 usr=$2
umount -R -l /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/dev /run/etc /run/work /run/systemd
mount -t tmpfs -o mode=755 tmpfs /run/dev
mkdir /run/dev/pts /run/dev/shm
for device in null zero full random urandom tty; do cp -a "/dev/$device" /run/dev/; done
ln -s /proc/self/fd /run/dev/fd
ln -s pts/ptmx /run/dev/ptmx
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts /run/dev/pts
mount --move /run/dev /dev
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work overlay /etc
[ -z "$usr" ] || mount -t overlay -o "lowerdir=$usr:/usr" overlay /usr
hostname handover
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=handover \
	SYSTEMD_UNIT_PATH="$dir/units:/lib/systemd/system" \
	/lib/systemd/systemd --system --unit=handover.target --log-target=journal --show-status=no
INIT

boot() {
	mkdir -p "$cgroup" "$dir/units"
	# Nothing but the journal: it shows what a failed test has done.
	printf '[Unit]\nDefaultDependencies=no\nWants=systemd-journald.service\nAfter=systemd-journald.service\n' \
		>"$dir/units/handover.target"
	(
		echo "$BASHPID" >"$cgroup/cgroup.procs"
		exec setsid unshare --mount --propagation private --cgroup --pid --fork --kill-child --ipc --uts \
			bash -c "$init" handover "$dir" "$usr"
	) >"$dir/boot.log" 2>&1 </dev/null &
	for _ in $(seq 1000); do
		pid=$(pgrep -P $! || true)
		if [ -n "$pid" ] && nsenter -t "$pid" -a systemctl -q is-active handover.target 2>/dev/null; then
			echo "$pid"
			return
		fi
		kill -0 $! 2>/dev/null || break
		sleep 0.01
	done
	echo "systemd.sh: systemd is not up, and has said: $(tail -3 "$dir/boot.log")" >&2
	end
	exit 1
}

end() {
	[ -d "$cgroup" ] || return 0
	echo 1 >"$cgroup/cgroup.kill"
	while grep -q 'populated 1' "$cgroup/cgroup.events"; do sleep 0.01; done
	find "$cgroup" -depth -type d -exec rmdir {} \;
}

case $what in
boot) boot ;;
end) end ;;
*)
	echo "systemd.sh: $what: want boot or end" >&2
	exit 2
	;;
esac
