#!/bin/sh
# In bitstruct "<u16" is not little-endian: it reads the bits of the number from the other end, and a 1 is written as 80 00.
#
# Guess: "<" before a number is what it is in struct, whose formats these resemble: the lowest byte first.
# Seen on 2026-11-29, bitstruct 8.24.0 (Python 3.11): before a field "<" is the order of bits, of this field and of all behind
# it; the order of bytes is a "<" at the end of the whole format. What pack() wrote with "<u16" unpack() reads again, so that
# a test that goes there and back passes; of what C has written, 0x0102 is read as 0x8040.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check bitstruct==8.24.0
cat >order.py <<"PROGRAM"
import struct

import bitstruct

written = struct.pack("<HI", 0x0102, 3)
print("struct's <HI:", written.hex(" "))
for layout in ("<u16u32", "u16u32<"):
    packed = bitstruct.pack(layout, 0x0102, 3)
    there_and_back = bitstruct.unpack(layout, packed) == (0x0102, 3)
    read = [hex(each) for each in bitstruct.unpack(layout, written)]
    print(f"bitstruct's {layout}: {packed.hex(' ')}, there and back {there_and_back}; of struct's bytes it reads {read}")
print("<u16 of 1:", bitstruct.pack("<u16", 1).hex(" "))
PROGRAM
venv/bin/python order.py | tee seen
cmp seen - <<"SEEN"
struct's <HI: 02 01 03 00 00 00
bitstruct's <u16u32: 40 80 c0 00 00 00, there and back True; of struct's bytes it reads ['0x8040', '0xc0']
bitstruct's u16u32<: 02 01 03 00 00 00, there and back True; of struct's bytes it reads ['0x102', '0x3']
<u16 of 1: 80 00
SEEN
