#!/bin/sh
# pypcapfile finds no packet in a pcap file that a big-endian machine wrote, and says nothing.
#
# Guess: the packets, as the magic number at the begin says in which order the bytes are, or an error; tcprewrite and
# pure-pcapy3 read either.
# Seen on 2026-11-30, pypcapfile 0.12.0 (Python 3.11): it knows the order, reads the header in it, with link type and
# version as they are, and calls the file big-endian; its list of packets is empty, without an error. A test that looks
# through the capture of an s390x or PowerPC guest for what must not be there passes.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pypcapfile==0.12.0
cat >read.py <<"PROGRAM"
import struct

from pcapfile import savefile


def write(path, magic, order, fraction):
    with open(path, "wb") as file:
        file.write(struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, 1))
        for second in range(3):
            file.write(struct.pack(order + "IIII", 1700000000 + second, fraction, 60, 60) + bytes(60))


write("little", 0xA1B2C3D4, "<", 250_000)
write("big", 0xA1B2C3D4, ">", 250_000)
for path in "little", "big":
    with open(path, "rb") as file:
        read = savefile.load_savefile(file)
    said = str(read).splitlines()
    print(said[0], said[-1], [packet.timestamp for packet in read.packets], sep="; ")
PROGRAM
venv/bin/python read.py | tee seen
cmp seen - <<"SEEN"
b'little'-endian capture file version 2.4; number of packets: 3; [1700000000, 1700000001, 1700000002]
b'big'-endian capture file version 2.4; number of packets: 0; []
SEEN
