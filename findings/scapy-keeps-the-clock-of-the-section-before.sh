#!/bin/sh
# In the second section of a pcapng file scapy reads times by the clock of the first section's interface.
#
# Guess: a section begins anew, as the specification says: its interface 0 is the one that it describes. `cat a.pcapng
# b.pcapng` is a valid file, which tools that go on with a trace make.
# Seen on 2026-11-29, scapy 2.8.0 (Python 3.11): a section in microseconds and one in nanoseconds, a packet each of the
# same moment: the second is a thousand times as late. python-pcapng 2.1.1 reads the same of both.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check scapy==2.8.0 python-pcapng==2.1.1
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

first = section() + interface() + packet(SECONDS * 10**6)
second = section() + interface(NANOSECONDS) + packet(SECONDS * 10**9)
with open("trace.pcapng", "wb") as file:
    file.write(first + second)

import pcapng
from scapy.all import rdpcap

print("scapy", [int(each.time) for each in rdpcap("trace.pcapng")])
with open("trace.pcapng", "rb") as file:
    print("python-pcapng", [int(each.timestamp) for each in pcapng.FileScanner(file) if hasattr(each, "timestamp")])
PROGRAM
venv/bin/python read.py 2>warnings | tee seen
grep -q "^scapy \[1700000000, 1700000000000\]$" seen
grep -q "^python-pcapng \[1700000000, 1700000000\]$" seen
