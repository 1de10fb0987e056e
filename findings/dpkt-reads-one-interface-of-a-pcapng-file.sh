#!/bin/sh
# dpkt gives all packets of a pcapng file the clock of its first interface, and passes over the rest of what is in it.
#
# Guess: interfaces may differ in resolution, which is what each description has if_tsresol for; what a reader cannot
# read it refuses.
# Seen on 2026-11-29, dpkt 1.9.8 (Python 3.11): the packet of a second interface, in nanoseconds, is a thousand times as
# late; a Simple Packet Block, and all of a second section in the other byte order, are not there, and nothing is
# raised.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check dpkt==1.9.8
cat >read.py <<"PROGRAM"
import struct


def block(kind, body, order="<"):
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def section(order="<"):
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(*options, order="<"):
    written = b"".join(struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4) for code, value in options)
    return block(1, struct.pack(order + "HHI", 1, 0, 0) + written + (bytes(4) if written else b""), order)


def packet(ticks, interface=0, order="<"):
    return block(6, struct.pack(order + "IIIII", interface, ticks >> 32, ticks & 0xFFFFFFFF, 60, 60) + FRAME, order)


FRAME = bytes(range(60))
SECONDS = 1_700_000_000
NANOSECONDS = 9, bytes([9])  # if_tsresol

one = section() + interface() + packet(SECONDS * 10**6)
FILES = {
    "second interface": section() + interface() + interface(NANOSECONDS) + packet(SECONDS * 10**6) + packet(SECONDS * 10**9, 1),
    "other byte order": one + section(">") + interface(order=">") + packet(SECONDS * 10**6, order=">"),
    "simple packet": one + block(3, struct.pack("<I", 60) + FRAME),
}

import dpkt

for name, content in FILES.items():
    with open("trace.pcapng", "wb") as file:
        file.write(content)
    with open("trace.pcapng", "rb") as file:
        print(name, [int(when) for when, _ in dpkt.pcapng.Reader(file)])
PROGRAM
venv/bin/python read.py | tee seen
grep -q "^second interface \[1700000000, 1700000000000\]$" seen
grep -q "^other byte order \[1700000000\]$" seen
grep -q "^simple packet \[1700000000\]$" seen
