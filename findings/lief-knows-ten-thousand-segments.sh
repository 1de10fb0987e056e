#!/bin/sh
# LIEF has 10,000 segments of an ELF file that has 20,000, and 10,000 of one that has 70,000, without a word.
#
# Guess: all of them, as readelf and pyelftools have them, or an error: a dump of a process or of a machine has a
# segment for each mapping or piece of memory, and the format has a way (PN_XNUM) to write more than 65,534.
# Seen on 2026-11-30, LIEF 1.0.0 and pyelftools 0.33 (Python 3.11): LIEF's list ends after 10,000, its header's
# numberof_segments is 20,000 all the same, and nothing is printed. Memory of the segments behind is as if it had not
# been dumped. The limit is a constant of its source (Parser::NB_MAX_SEGMENTS); no documentation of it found in a
# search.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check lief==1.0.0 pyelftools==0.33
cat >read.py <<"PROGRAM"
import struct

import lief
from elftools.elf.elffile import ELFFile


def write(path, count):
    """Write a dump of so many pages; from 65,535 on the number is in the first section's sh_info."""
    many = count >= 0xFFFF
    numbers = 64 + 64 * many, 64 * many, 0, 64, 56, 0xFFFF if many else count, 64, int(many), 0
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 4, 62, 1, 0, *numbers)
    section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count, 0, 0) if many else b""
    pages = (struct.pack("<IIQQQQQQ", 1, 4, 0, page << 12, page << 12, 0, 4096, 4096) for page in range(count))
    with open(path, "wb") as file:
        file.write(header + section + b"".join(pages))


for count in 9_999, 20_000, 70_000:
    write("dump", count)
    read = lief.parse("dump")
    with open("dump", "rb") as file:
        print(count, "pyelftools", ELFFile(file).num_segments(), "lief", len(read.segments), end=" ")
    print("up to", hex(read.segments[-1].virtual_address))
PROGRAM
venv/bin/python read.py 2>&1 | tee seen
cmp seen - <<"SEEN"
9999 pyelftools 9999 lief 9999 up to 0x270e000
20000 pyelftools 20000 lief 10000 up to 0x270f000
70000 pyelftools 70000 lief 10000 up to 0x270f000
SEEN
