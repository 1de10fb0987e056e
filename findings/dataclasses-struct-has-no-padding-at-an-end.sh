#!/bin/sh
# Fields behind a nested structure are read in the wrong place by dataclasses-struct in its native mode: it knows
# padding between fields and none at the end of a structure.
#
# Guess: the places and sizes that C has, for that is what native size and alignment are for; the padding before a
# field is there, in nested structures too.
# Seen on 2026-11-30, dataclasses-struct 1.5.2 (Python 3.11, x86-64), ctypes beside it: a structure of an int and a
# char is 5 bytes, not 8, so that a char behind it is at 5 and not at 8, and an array behind that is read from another
# place. Bytes that a C program or a device wrote are read without an error, with other values. struct, on which it
# stands, has the same rule and documents it ("0i" at the end of a format); in this package's own description no word
# on it was found. PadAfter gives the bytes by hand.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check dataclasses-struct==1.5.2
cat >read.py <<"PROGRAM"
import ctypes
from typing import Annotated

import dataclasses_struct as dcs


@dcs.dataclass_struct(size="native")
class Entry:
    number: dcs.Int
    kind: dcs.UnsignedChar


@dcs.dataclass_struct(size="native")
class Header:
    first: Entry
    flag: dcs.UnsignedChar
    rest: Annotated[list[Entry], 2]


class CEntry(ctypes.Structure):
    _fields_ = [("number", ctypes.c_int), ("kind", ctypes.c_ubyte)]


class CHeader(ctypes.Structure):
    _fields_ = [("first", CEntry), ("flag", ctypes.c_ubyte), ("rest", CEntry * 2)]


written = CHeader(CEntry(1, 2), 3, (CEntry * 2)(CEntry(4, 5), CEntry(6, 7)))
print("C sizes", ctypes.sizeof(CEntry), ctypes.sizeof(CHeader))
print("dataclasses-struct sizes", dcs.get_struct_size(Entry), dcs.get_struct_size(Header))
read = Header.from_packed(bytes(written)[: dcs.get_struct_size(Header)])
print("C", 1, 2, 3, 4, 5, 6, 7)
entries = [value for each in read.rest for value in (each.number, each.kind)]
print("dataclasses-struct", read.first.number, read.first.kind, read.flag, *entries)
PROGRAM
venv/bin/python read.py | tee seen
cmp seen - <<"SEEN"
C sizes 8 28
dataclasses-struct sizes 5 21
C 1 2 3 4 5 6 7
dataclasses-struct 1 2 0 3 4 5 6
SEEN
