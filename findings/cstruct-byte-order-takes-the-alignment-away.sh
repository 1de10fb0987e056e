#!/bin/sh
# cstruct (python-cstruct) aligns the fields of a structure until it is told the byte order that the machine has anyway.
#
# Guess: a byte order says how a number's bytes are read; where the fields lie stays as it is.
# Seen on 2026-11-29, cstruct 6.2 (Python 3.11, x86-64): { uint8_t; uint32_t; uint16_t; } has 12 bytes, as in C, and with
# LITTLE_ENDIAN 7: the second field is read from byte 1 instead of 4. It is what Python's struct does with "<", which no
# structure in the syntax of C lets one think of.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cstruct==6.2
cat >read.py <<"PROGRAM"
import cstruct

FIELDS = "struct s { uint8_t a; uint32_t b; uint16_t c; }"
native = type("Native", (cstruct.MemCStruct,), {"__def__": FIELDS})
told = type("Told", (cstruct.MemCStruct,), {"__def__": FIELDS, "__byte_order__": cstruct.LITTLE_ENDIAN})
for kind in (native, told):
    read = kind()
    read.unpack(bytes(range(kind.size)))
    print(kind.__name__, kind.size, "b begins at", read.b & 0xFF)
PROGRAM
venv/bin/python read.py | tee seen
[ "$(tr "\n" ";" <seen)" = "Native 12 b begins at 4;Told 7 b begins at 1;" ]
