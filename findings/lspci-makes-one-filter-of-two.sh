#!/bin/sh
# lspci with two -s shows neither of the two devices: of both it makes one filter, for a device that nobody named.
#
# Guess: both, as of two names that are given to a program; or the last one, as where an option is repeated; or an
# error.
# Seen on 2026-11-30, lspci 3.9.0 (Debian 12, 1:3.9.0-4), on a dump (-F) with the devices 05:00.0, 06:1f.7 and
# 06:00.0: each part of an address that the later -s leaves open stays that of the earlier one, so that `-s 05:00.0 -s
# 06:` is 06:00.0, without 06:1f.7; `-s 05:00.0 -s 1f.7` is 05:1f.7, which is not there, and that is status 0. -d does
# the same with vendor and device. The manual has no word on two of them, and no issue was found.
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
fetch install --yes --download-only --no-install-recommends \
    pciutils=1:3.9.0-4
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
tool() {
    LD_LIBRARY_PATH=$libraries "$work/unpacked/$@"
}

cat >make.py <<"PROGRAM"
space = bytearray(64)
space[:16] = bytes.fromhex("f41a 4110 0700 0000 01 000002 00000000")
with open("dump", "w") as dump:
    for slot in "05:00.0", "06:00.0", "06:1f.7":
        print(slot, "Ethernet controller", file=dump)
        for at in range(0, 64, 16):
            print(f"{at:02x}: {space[at : at + 16].hex(' ')}", file=dump)
        print(file=dump)
PROGRAM
python3 make.py
lspci() {
    tool usr/bin/lspci -i /dev/null -n -F dump "$@"
}
for filter in "-s 05:00.0" "-s 06:" "-s 1f.7" "-s 05:00.0 -s 06:" "-s 05:00.0 -s 1f.7" "-s 06: -s 05:00.0"; do
    status=0
    shown=$(lspci $filter) || status=$?
    echo "$filter shows" $(echo "${shown:-nothing}" | cut -d " " -f 1)", status $status"
done | tee seen
cmp seen - <<"SEEN"
-s 05:00.0 shows 05:00.0, status 0
-s 06: shows 06:00.0 06:1f.7, status 0
-s 1f.7 shows 06:1f.7, status 0
-s 05:00.0 -s 06: shows 06:00.0, status 0
-s 05:00.0 -s 1f.7 shows nothing, status 0
-s 06: -s 05:00.0 shows 05:00.0, status 0
SEEN
