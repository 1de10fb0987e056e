#!/bin/sh
# A Simple Packet Block of pcapng has no bytes for scapy where its interface sets no limit, and is of the moment of
# reading.
#
# Guess: a snap length of 0 is "no limit", so that all of the block is the packet; and what has no time has none.
# Seen on 2026-11-29, scapy 2.8.0 (Python 3.11): a block of 60 bytes is a packet without a payload (the 14 bytes of an
# Ethernet header that scapy fills in), its time is that of the call; with a snap length of 65535 it has all 60.
# python-pcapng 2.1.1 has 60 both times.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check scapy==2.8.0 python-pcapng==2.1.1
cat >read.py <<"PROGRAM"
import struct


def block(kind, body):
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size


import time

import pcapng
from scapy.all import rdpcap

FRAME = bytes(range(60))
for limit in (0, 65535):
    with open("trace.pcapng", "wb") as file:
        file.write(block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)))
        file.write(block(1, struct.pack("<HHI", 1, 0, limit)) + block(3, struct.pack("<I", 60) + FRAME))
    before = time.time()
    (packet,) = rdpcap("trace.pcapng")
    print("scapy", limit, bytes(packet) == FRAME, "of now" if packet.time >= before else packet.time)
    with open("trace.pcapng", "rb") as file:
        print("python-pcapng", limit, [each.packet_data == FRAME for each in pcapng.FileScanner(file) if hasattr(each, "packet_data")])
PROGRAM
venv/bin/python read.py 2>warnings | tee seen
grep -q "^scapy 0 False of now$" seen
grep -q "^scapy 65535 True of now$" seen
[ "$(grep -c "^python-pcapng .* \[True\]$" seen)" = 2 ]
