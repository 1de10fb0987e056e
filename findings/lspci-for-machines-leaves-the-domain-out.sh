#!/bin/sh
# lspci -mm leaves out the domain of devices in domain 0 on a machine that has others, where plain lspci shows it.
#
# Guess: the address as plain lspci has it. The manual says of -D that domains are suppressed "on machines which have
# only domain 0", and -mm is the form that is for programs, of which each line is to be read alike.
# Seen on 2026-11-30, lspci 3.9.0 (Debian 12, 1:3.9.0-4), on a dump (-F) of a machine with the domains 0000, 0001 and
# 10000 (as of Intel's VMD): three fields in some lines of -mm, and in the "Slot:" of -vmm, and two in others; plain
# lspci has all of them whole. With -D all are whole. Programs that take the address for the name below
# /sys/bus/pci/devices miss the devices of domain 0 there. Not in the issues of pciutils found by a search.
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
    for slot in "0000:00:02.0", "0001:00:02.0", "10000:00:02.0":
        print(slot, "Ethernet controller", file=dump)
        for at in range(0, 64, 16):
            print(f"{at:02x}: {space[at : at + 16].hex(' ')}", file=dump)
        print(file=dump)
PROGRAM
python3 make.py
lspci() {
    tool usr/bin/lspci -i /dev/null -n -F dump "$@"
}
{
    lspci | cut -d " " -f 1 | sed "s/^/plain /"
    lspci -mm | cut -d " " -f 1 | sed "s/^/-mm /"
    lspci -vmm | sed -n "s/^Slot:\t/-vmm /p"
    lspci -D -mm | cut -d " " -f 1 | sed "s/^/-D -mm /"
} | tee seen
cmp seen - <<"SEEN"
plain 0000:00:02.0
plain 0001:00:02.0
plain 10000:00:02.0
-mm 00:02.0
-mm 0001:00:02.0
-mm 10000:00:02.0
-vmm 00:02.0
-vmm 0001:00:02.0
-vmm 10000:00:02.0
-D -mm 0000:00:02.0
-D -mm 0001:00:02.0
-D -mm 10000:00:02.0
SEEN
