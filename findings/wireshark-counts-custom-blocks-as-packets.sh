#!/bin/sh
# A custom block of a pcapng file is a frame for tshark and editcap, and none for capinfos: their numbers of packets
# differ.
#
# Guess: a custom block is what a reader passes over that does not know it; only packets have numbers.
# Seen on 2026-11-29, tshark, editcap and capinfos 4.0.17 (Debian 4.0.17-0+deb12u3; 4.4.19 counts the same): of a file
# with a custom block and two packets tshark has three frames, the first of them without a time, capinfos "2"; `editcap
# -r FILE OUT 1` gives a file without a packet. Who takes packets out by their number, or splits a trace by a count, is
# off by one as soon as somebody's tool has put a block of its own into it.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# Debian 12's packages and what they need, unpacked here by an apt that sees nothing as installed.
mkdir -p lists/partial cache/archives/partial
: >status
fetch() {
    apt-get -qq -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o Dir::State::status="$work/status" \
        -o APT::Sandbox::User= -o Debug::NoLocking=1 "$@"
}
fetch update
fetch install --yes --download-only --no-install-recommends tshark=4.0.17-0+deb12u3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
cat >write.py <<"PROGRAM"
import struct


def block(kind, body):
    body += bytes(-len(body) % 4)
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size


SECTION = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
INTERFACE = block(1, struct.pack("<HHI", 1, 0, 0))
CUSTOM = block(0x00000BAD, struct.pack("<I", 32473) + b"a test begins")  # the number is one for examples
PACKET = block(6, struct.pack("<IIIII", 0, 0, 1_000_000, 60, 60) + bytes(60))
with open("trace.pcapng", "wb") as file:
    file.write(SECTION + INTERFACE + CUSTOM + PACKET + PACKET)
PROGRAM
python3 write.py
{
    run tshark -r trace.pcapng -T fields -E separator=, -e frame.number -e frame.time_epoch 2>said
    run capinfos -c trace.pcapng | tail -n 1
    run editcap -r trace.pcapng first.pcapng 1
    run capinfos -c first.pcapng | tail -n 1
} | tee seen
cmp seen - <<"SEEN"
1,
2,1.000000000
3,1.000000000
Number of packets:   2
Number of packets:   0
SEEN
