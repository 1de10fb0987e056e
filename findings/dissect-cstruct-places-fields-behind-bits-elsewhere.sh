#!/bin/sh
# dissect.cstruct, told to align as a compiler does, reads the field after a bit-field from where no compiler puts it.
#
# Guess: with align=True a structure of bit-fields and whole fields has the size and the offsets that gcc gives it, or is
# refused, as a bit-field over the border of its unit is.
# Seen on 2026-11-29, dissect.cstruct 4.7 (Python 3.11) and gcc 12 on x86-64: in { uint32_t a : 16; uint16_t b; } gcc has b in
# the bytes 2 and 3 and 4 bytes in all (what is left of the unit is used, System V ABI), dissect.cstruct in the bytes 4 and 5
# and 8 in all; { uint16_t a : 4; uint8_t b; uint16_t c : 12; } has 4 and 6 bytes.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check dissect.cstruct==4.7
cat >structures.h <<"HEADER"
struct one { uint32_t a : 16; uint16_t b; };
struct two { uint16_t a : 4; uint8_t b; uint16_t c : 12; };
HEADER
cat >compiled.c <<"PROGRAM"
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "structures.h"
int main(void)
{
    printf("gcc %zu %zu, b at %zu\n", sizeof(struct one), sizeof(struct two), offsetof(struct one, b));
}
PROGRAM
cc -o compiled compiled.c
cat >read.py <<"PROGRAM"
from dissect.cstruct import cstruct

types = cstruct()
types.load(open("structures.h").read(), align=True)
print("dissect.cstruct", f"{types.one.size} {types.two.size}, b at {types.one(bytes(range(8))).b & 0xFF}")
PROGRAM
{ ./compiled && venv/bin/python read.py; } | tee seen
[ "$(tr "\n" ";" <seen)" = "gcc 4 4, b at 2;dissect.cstruct 8 6, b at 4;" ]
