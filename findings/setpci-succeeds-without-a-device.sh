#!/bin/sh
# setpci for a device that is not there ends with success, and so does a register that the space does not have.
#
# Guess: a failure, as for a capability that the device does not have, where setpci ends with 1.
# Seen on 2026-11-29, setpci 3.9.0 (Debian 1:3.9.0-4), on a dump of one device: for an address where none is there is a warning
# and status 0, also where a register was to be written; register 0x100 of a space of 256 bytes is ffffffff with status 0. A
# script that sets up a device and looks at the status goes on with one that is gone.
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
fetch install --yes --download-only --no-install-recommends pciutils=1:3.9.0-4
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
# The 256 bytes of a controller, as `lspci -xxx` prints them.
{
    echo "01:00.0 Non-Volatile memory controller: an example"
    echo "00: 36 1b 10 00 07 00 00 00 02 02 08 01 00 00 00 00"
    for row in 1 2 3 4 5 6 7 8 9 a b c d e f; do echo "${row}0: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"; done
} >dump
ask() {
    status=0
    LD_LIBRARY_PATH=$libraries unpacked/usr/bin/setpci -A dump -O dump.name=dump -s "$@" >out 2>err || status=$?
    echo "-s $*: status $status, printed [$(cat out)], warned $(grep -c Warning err || :)"
}
{
    ask 01:00.0 COMMAND
    ask 02:00.0 COMMAND
    ask 02:00.0 COMMAND=6
    ask 01:00.0 100.L
    ask 01:00.0 CAP_EXP+0.W
} | tee seen
cmp seen - <<"SEEN"
-s 01:00.0 COMMAND: status 0, printed [0007], warned 0
-s 02:00.0 COMMAND: status 0, printed [], warned 1
-s 02:00.0 COMMAND=6: status 0, printed [], warned 1
-s 01:00.0 100.L: status 0, printed [ffffffff], warned 0
-s 01:00.0 CAP_EXP+0.W: status 1, printed [], warned 0
SEEN
