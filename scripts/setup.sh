#!/bin/sh
# setup.sh installs the Debian packages that the tests need and that are not
# there: a C compiler for the race detector, and shellcheck.
set -eu

missing=''
command -v gcc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
command -v shellcheck >/dev/null 2>&1 || missing="$missing shellcheck"
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
# shellcheck disable=SC2086 # a list of words
$sudo apt-get install -q -y --no-install-recommends $missing
