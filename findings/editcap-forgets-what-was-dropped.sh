#!/bin/sh
# A copy of a pcapng file by editcap or mergecap does not say how many packets were dropped, nor what address an
# interface had.
#
# Guess: without a selection the copy has all blocks and options of the specification, or what is lost is named.
# Seen on 2026-11-29, editcap and mergecap 4.0.17 (Debian 4.0.17-0+deb12u3; 4.4.19 loses the same): the Interface
# Statistics Block, which has the counts of what was received and dropped, is in neither copy, nor is the option
# if_IPv4addr; status 0 and no word. A trace with holes is one without after the first tool that it went through.
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
fetch install --yes --download-only --no-install-recommends wireshark-common=4.0.17-0+deb12u3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
cat >trace.py <<"PROGRAM"
import struct
import sys


def block(kind, body):
    body += bytes(-len(body) % 4)
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size


def options(*pairs):
    written = (struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4) for code, value in pairs)
    return b"".join(written) + bytes(4)


SECTION = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
ADDRESS = 4, bytes([192, 0, 2, 1, 255, 255, 255, 0])
INTERFACE = block(1, struct.pack("<HHI", 1, 0, 0) + options((2, b"tap0"), ADDRESS))
PACKET = block(6, struct.pack("<IIIII", 0, 0, 1_000_000, 60, 60) + bytes(60))
COUNTS = (4, struct.pack("<Q", 1000)), (5, struct.pack("<Q", 999))  # received, dropped
STATISTICS = block(5, struct.pack("<III", 0, 0, 1_000_000) + options(*COUNTS))
with open("trace.pcapng", "wb") as file:
    file.write(SECTION + INTERFACE + PACKET + STATISTICS)
PROGRAM
python3 trace.py
run editcap trace.pcapng editcap.pcapng
run mergecap -w mergecap.pcapng trace.pcapng
cat >blocks.py <<"PROGRAM"
import struct
import sys

NAMES = {0x0A0D0D0A: "section", 1: "interface", 5: "statistics", 6: "packet"}
for name in sys.argv[1:]:
    with open(name, "rb") as file:
        data = file.read()
    at, kinds = 0, []
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        kinds.append(NAMES.get(kind, hex(kind)))
        at += size
    print(f"{name}: {', '.join(kinds)}; {'an' if bytes([192, 0, 2, 1, 255]) in data else 'no'} address")
PROGRAM
python3 blocks.py trace.pcapng editcap.pcapng mergecap.pcapng | tee seen
cmp seen - <<"SEEN"
trace.pcapng: section, interface, packet, statistics; an address
editcap.pcapng: section, interface, packet; no address
mergecap.pcapng: section, interface, packet; no address
SEEN
