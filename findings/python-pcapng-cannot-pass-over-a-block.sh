#!/bin/sh
# A block of a type that python-pcapng does not know ends its reading with a RecursionError.
#
# Guess: it is passed over, as the specification asks of readers, which is why each block has its length in front; the
# library has a class UnknownBlock for it.
# Seen on 2026-11-29, python-pcapng 2.1.1 (Python 3.11): a block of a type from the range for local use between an
# interface and a packet: iterating gives the section and the interface, and then "maximum recursion depth exceeded".
# scapy 2.8.0 and dpkt 1.9.8 pass over it.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check python-pcapng==2.1.1 scapy==2.8.0 dpkt==1.9.8
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

with open("trace.pcapng", "wb") as file:
    file.write(section() + interface() + block(0x80000001, b"ours") + packet(SECONDS * 10**6))

import dpkt
import pcapng
from scapy.all import rdpcap

kinds = []
with open("trace.pcapng", "rb") as file:
    try:
        for each in pcapng.FileScanner(file):
            kinds.append(type(each).__name__)
            print(kinds[-1], hasattr(each, "timestamp"))
    except RecursionError as error:
        print("RecursionError", error)
with open("trace.pcapng", "rb") as file:
    print("packets:", len(rdpcap("trace.pcapng")), len(list(dpkt.pcapng.Reader(file))))
PROGRAM
venv/bin/python read.py 2>warnings | tee seen
grep -q "^RecursionError" seen
grep -q "^packets: 1 1$" seen
