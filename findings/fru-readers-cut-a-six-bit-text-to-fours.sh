#!/bin/sh
# Of a serial number of five or six characters in 6-bit ASCII frutool has four, of one of two it has none; pyghmi and
# frugy raise an error of Python's.
#
# Guess: the whole text, as for the other kinds: the specification packs four characters in three bytes and lets a
# field have any number of bytes.
# Seen on 2026-11-30, fru 4.1.0, pyghmi 1.6.19, frugy 0.5.4, python-ipmi 0.6.1 (Python 3.11): fru has whole groups of
# four and leaves the rest out without a word; pyghmi has IndexError, frugy TypeError, and neither names a field;
# python-ipmi reads all (issue 154 of kontron/python-ipmi, mended). Texts of four characters are right everywhere. fru
# knows 6-bit texts since genotrance/fru-tool 29 and 30, which do not speak of this.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check fru==4.1.0 pyghmi==1.6.19 frugy==0.5.4 python-ipmi==0.6.1
cat >read.py <<"PROGRAM"
import pathlib

import pyghmi.ipmi.fru
import pyipmi.fru
from fru import fru_format
from frugy.fru import Fru


def area(body):
    body += b"\xc1"
    whole = bytes([1, (len(body) + 10) // 8]) + body
    whole += bytes(-(len(whole) + 1) % 8)
    return whole + bytes([-sum(whole) & 255])


def inventory(serial, kind, minutes=0):
    """A whole inventory with a board of five fields, by the specification; the serial number is of the kind asked for."""
    head = bytes([1, 0, 0, 1, 0, 0, 0])
    fields = [(3, b"ACME"), (3, b"BOARD"), (kind, serial), (3, b"PART"), (3, b"file")]
    written = b"".join(bytes([each << 6 | len(text)]) + text for each, text in fields)
    return head + bytes([-sum(head) & 255]) + area(bytes([25]) + minutes.to_bytes(3, "little") + written)


def six_bits(text):
    packed = sum(ord(character) - 32 << 6 * place for place, character in enumerate(text))
    return packed.to_bytes((len(text) * 6 + 7) // 8, "little")


def frugy():
    read = Fru()
    read.load_bin("a.fru")
    return read.to_dict()["BoardInfo"]["serial_number"]


readers = {
    "pyipmi": lambda: str(pyipmi.fru.get_fru_inventory_from_file("a.fru").board_info_area.serial_number),
    "fru": lambda: fru_format.load("a.fru")["board"]["serial_number"],
    "pyghmi": lambda: pyghmi.ipmi.fru.FRU(rawdata=bytearray(whole)).info["Board serial number"],
    "frugy": frugy,
}
for text in "ABCD", "ABCDEF", "ABCDE", "AB":
    whole = inventory(six_bits(text), 2)
    pathlib.Path("a.fru").write_bytes(whole)
    seen = []
    for name, reader in readers.items():
        try:
            seen.append(f"{name} {reader()!r}")
        except Exception as error:
            seen.append(f"{name} {type(error).__name__}")
    print(text, *seen)
PROGRAM
venv/bin/python read.py | tee seen
cmp seen - <<"SEEN"
ABCD pyipmi 'ABCD' fru 'ABCD' pyghmi 'ABCD' frugy 'ABCD'
ABCDEF pyipmi 'ABCDEF' fru 'ABCD' pyghmi IndexError frugy TypeError
ABCDE pyipmi 'ABCDE' fru 'ABCD' pyghmi IndexError frugy TypeError
AB pyipmi 'AB' fru '' pyghmi IndexError frugy TypeError
SEEN
