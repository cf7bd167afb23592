#!/bin/sh
# setup.sh installs the Debian packages that the tests need and that are not
# there: a C compiler for the race detector, shellcheck, and the clients and
# proxies that are put on a server while it is upgraded.
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
