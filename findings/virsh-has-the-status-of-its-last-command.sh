#!/bin/sh
# virsh ends with 0 when the last of its commands succeeded, whatever failed before; it goes on behind a failure.
#
# Guess: commands in one argument, with semicolons between, are a batch: it stops at the first that fails, or goes on
# and ends with non-zero, so that the status of `virsh "start guest; domstate guest"` says whether the guest was
# started.
# Seen on 2026-11-30, virsh 9.0.0 (Debian 9.0.0-4+deb12u2), its test driver: as in a shell without `set -e`. For a
# command that does not exist it refuses the whole list before any is run. The manual tells how to write such a list,
# and not what its status is.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
# Debian 12's packages and what they need, unpacked here by an apt that sees nothing as installed.
mkdir -p lists/partial cache/archives/partial
: >status
fetch() {
    apt-get -qq -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o Dir::State::status="$work/status" \
        -o APT::Sandbox::User= -o Debug::NoLocking=1 "$@"
}
fetch update
fetch install --yes --download-only --no-install-recommends libvirt-clients=9.0.0-4+deb12u2
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
export XDG_CONFIG_HOME="$work" XDG_CACHE_HOME="$work" XDG_RUNTIME_DIR="$work"
asked() {
    status=0
    LD_LIBRARY_PATH=$libraries unpacked/usr/bin/virsh -c test:///default "$1" >said 2>errors || status=$?
    echo "$1: status $status, $(grep -c test said) line that names the guest"
}
{
    asked "start nobody; domstate nobody; list --name"
    asked "list --name; start nobody"
    asked "list --name; no-such-command"
} | tee seen
cmp seen - <<"SEEN"
start nobody; domstate nobody; list --name: status 0, 1 line that names the guest
list --name; start nobody: status 1, 1 line that names the guest
list --name; no-such-command: status 1, 0 line that names the guest
SEEN
