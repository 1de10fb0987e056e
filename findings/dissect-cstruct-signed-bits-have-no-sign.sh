#!/bin/sh
# A signed bit-field has no sign in dissect.cstruct: what C reads as -1 is 7, and a -1 is not what it reads again.
#
# Guess: `int delta : 3` is from -4 to 3, as gcc and Python's ctypes have it; the same library's int8 and int are signed.
# Seen on 2026-11-30, dissect.cstruct 4.7 (Python 3.11): of 0xff the fields of 3 and 5 bits are 7 and 31, ctypes has -1
# and -1, and a plain int8 beside them is -1. A difference, a temperature or an offset in a register or a descriptor is
# a large number as soon as it is below 0; positive ones are right, so that a test with those passes.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check dissect.cstruct==4.7
cat >read.py <<"PROGRAM"
import ctypes

from dissect.cstruct import cstruct

definitions = cstruct()
definitions.load("""
struct status {
    int8 delta : 3;
    int8 offset : 5;
    int8 plain;
};
""")


class Status(ctypes.Structure):
    _fields_ = [("delta", ctypes.c_int8, 3), ("offset", ctypes.c_int8, 5), ("plain", ctypes.c_int8)]


for raw in b"\x0b\x01", b"\xff\xff":
    ours, theirs = Status.from_buffer_copy(raw), definitions.status(raw)
    for name, read in ("ctypes", ours), ("dissect", theirs):
        print(name, *(int(getattr(read, field)) for field in ("delta", "offset", "plain")))
PROGRAM
venv/bin/python read.py | tee seen
cmp seen - <<"SEEN"
ctypes 3 1 1
dissect 3 1 1
ctypes -1 -1 -1
dissect 7 31 -1
SEEN
