#!/bin/sh
# Two readers of pcapng leave if_tsoffset out: packets of a valid file are of January 1970.
#
# Guess: readers that know if_tsresol know the option beside it in the specification too (if_tsoffset, seconds to be
# added).
# Seen on 2026-11-29, python-pcapng 2.1.1 and scapy 2.8.0 (Python 3.11): both give 0.25, without a warning; dpkt 1.9.8
# gives 1700000000.25, as Wireshark does.
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
    file.write(section() + interface((14, struct.pack("<q", SECONDS))) + packet(250_000))

import dpkt
import pcapng
from scapy.all import rdpcap

print("scapy", [float(each.time) for each in rdpcap("trace.pcapng")])
with open("trace.pcapng", "rb") as file:
    print("python-pcapng", [each.timestamp for each in pcapng.FileScanner(file) if hasattr(each, "timestamp")])
with open("trace.pcapng", "rb") as file:
    print("dpkt", [when for when, _ in dpkt.pcapng.Reader(file)])
PROGRAM
venv/bin/python read.py 2>warnings | tee seen
[ "$(tr "\n" " " <seen)" = "scapy [0.25] python-pcapng [0.25] dpkt [1700000000.25] " ]
