#!/bin/sh
# Wireshark's programs read times in picoseconds wrong within the second: .123456789 is .012776324.
#
# Guess: if_tsresol 12 is as good as 9: where it has no use for the last three digits it cuts them off.
# Seen on 2026-11-29, tshark 4.0.17 (Debian 4.0.17-0+deb12u3; 4.4.19 does the same): the fraction times 10^9 is more than 64 bits hold as
# soon as it is 0.0185 s, and what is left of it is taken. A packet at .018 s is right, so that a short test passes; later
# ones come before it, and the order of the trace is another. python-pcapng 2.1.1 reads all three as they are.
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
fetch install --yes --download-only --no-install-recommends tshark=4.0.17-0+deb12u3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check python-pcapng==2.1.1
cat >trace.py <<"PROGRAM"
import struct


def block(kind, body):
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size


def packet(ticks):
    return block(6, struct.pack("<IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, 16, 16) + bytes(16))


section = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
interface = block(1, struct.pack("<HHI", 147, 0, 0) + struct.pack("<HHB3xHH", 9, 1, 12, 0, 0))  # if_tsresol 12
PICOSECONDS = 10**12
times = [1_000_000 * PICOSECONDS + each for each in (18_000_000_000, 19_000_000_000, 123_456_789_012)]
with open("trace.pcapng", "wb") as file:
    file.write(section + interface + b"".join(map(packet, times)))

import pcapng

with open("trace.pcapng", "rb") as file:
    for each in pcapng.FileScanner(file):
        if hasattr(each, "timestamp"):
            print(f"python-pcapng: {each.timestamp:.6f}")
PROGRAM
{
    venv/bin/python trace.py
    LD_LIBRARY_PATH=$libraries unpacked/usr/bin/tshark -r trace.pcapng -T fields -e frame.time_epoch 2>/dev/null | sed "s/^/tshark: /"
} | tee seen
cmp seen - <<"SEEN"
python-pcapng: 1000000.018000
python-pcapng: 1000000.019000
python-pcapng: 1000000.123457
tshark: 1000000.018000000
tshark: 1000000.000553255
tshark: 1000000.012776324
SEEN
