#!/bin/sh
# setup.sh installs the Debian packages that the tests need and that are not
# there: a C compiler for the race detector, shellcheck, and the clients and
# proxies that are put on a server while it is upgraded. With the argument
# managers it also installs the process managers that it is upgraded under.
set -eu

PATH=$PATH:/usr/sbin # nginx, haproxy
missing=''

# need PROGRAM PACKAGE…
need() {
	program=$1
	shift
	command -v "$program" >/dev/null 2>&1 || missing="$missing $*"
}

need gcc gcc libc6-dev
need shellcheck shellcheck
need curl curl
need wrk wrk
need hey hey
need h2load nghttp2-client
need nginx nginx-light
need haproxy haproxy
need chromium chromium

# The process managers that a server is upgraded under.
if [ "${1-}" = managers ]; then
	need runsv runit
	need svscan daemontools
	need s6-svscan s6
	need supervisord supervisor
	need podman podman
	need runc runc
	need catatonit catatonit
	need monit monit
	need logrotate logrotate
fi

# A second systemd, with Type=notify-reload, which Debian 12 has in its backports.
# It is unpacked for the tests and not installed: they lay it over /usr in
# namespaces of their own. Its version is that of the machine otherwise.
unpack_systemd() (
	to=$(dirname "$0")/../bin/systemd-254
	# shellcheck disable=SC2016 # it is apt's
	from=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 2>/dev/null | head -n 1)
	[ -n "$from" ] && [ ! -d "$to" ] && [ "$(id -u)" -eq 0 ] || return 0
	mkdir -p "$to.new"
	to=$(cd "$(dirname "$to")" && pwd)/systemd-254
	dir=$(mktemp -d)
	trap 'rm -rf "$dir" "$to.new"' EXIT
	mkdir -p "$dir/lists/partial"
	echo "deb $from bookworm-backports main" >"$dir/list"
	cd "$dir"
	echo 'setup: unpacking systemd 254'
	set -- -q -o APT::Sandbox::User=root -o "Dir::Etc::sourcelist=$dir/list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$dir/lists"
	apt-get "$@" update
	apt-get "$@" download systemd libsystemd-shared libsystemd0
	for package in *.deb; do dpkg -x "$package" "$to.new"; done
	# Debian has /bin and /lib in /usr, and the packages of that time do not know it.
	cp -a "$to.new/bin" "$to.new/lib" "$to.new/usr/"
	mv "$to.new" "$to"
)
[ "${1-}" != managers ] || unpack_systemd
[ -n "$missing" ] || exit 0

echo "setup: installing$missing"
if ! command -v apt-get >/dev/null 2>&1; then
	echo "setup: no apt-get here: install$missing by hand" >&2
	exit 1
fi
sudo=''
[ "$(id -u)" -eq 0 ] || sudo=sudo
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -q

# The packages of nginx and HAProxy start a service each, unless policy-rc.d,
# which most systems do not have, forbids it.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap '$sudo rm -f "$policy"' EXIT
	trap 'exit 1' HUP INT TERM
	printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
	$sudo chmod 755 "$policy"
fi
# shellcheck disable=SC2086 # a list of words
$sudo apt-get install -q -y --no-install-recommends $missing
