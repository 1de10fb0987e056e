#!/bin/sh
# A serial number of 0102 in an FRU inventory is 12 in ipmi-fru, and one of 12 is an error.
#
# Guess: 0102. "BCD plus" is the packed kind of decimal digits of IPMI's specification of FRU data: two digits a byte,
# and blank, dash and period as 0xa, 0xb and 0xc.
# Seen on 2026-11-30, freeipmi 1.6.10 (Debian 1.6.10-1+b1), python-ipmi 0.6.1 and fru-parser 0.1.2 (Python 3.11):
# ipmi-fru takes each byte for one digit, so that the bytes 01 02 are 12 and 12 is "FRU invalid BCD encoding", with
# status 0 in each case. The two others have the four digits. Not in ipmi-fru(8), and no issue found in a search.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
# Debian 12's packages and what they need, unpacked here by an apt that sees nothing as installed.
mkdir -p lists/partial cache/archives/partial
: >status
fetch() {
    apt-get -qq -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o Dir::State::status="$work/status" \
        -o APT::Sandbox::User= -o Debug::NoLocking=1 "$@"
}
fetch update
fetch install --yes --download-only --no-install-recommends \
    freeipmi-tools=1.6.10-1+b1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check python-ipmi==0.6.1 fru-parser==0.1.2
tool() {
    LD_LIBRARY_PATH=$libraries "$work/unpacked/$@"
}

shown() { # the field of an inventory as ipmi-fru prints it
    tool usr/sbin/ipmi-fru --fru-file="$1" | sed -n "s/.*$2: //p"
}

cat >write.py <<"PROGRAM"
import pathlib


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


for digits in "0102", "0908", "12":
    pathlib.Path(digits + ".fru").write_bytes(inventory(bytes.fromhex(digits), 1))
PROGRAM
cat >read.py <<"PROGRAM"
import json
import sys

import pyipmi.fru

parsed = json.load(open(sys.argv[2]))
board = pyipmi.fru.get_fru_inventory_from_file(sys.argv[1]).board_info_area
print(board.serial_number, parsed["board"]["serial"]["data"])
PROGRAM
python3 write.py
for digits in 0102 0908 12; do
    venv/bin/fru-parser --quiet --fru-bin $digits.fru --output $digits.json
    echo "$digits: $(venv/bin/python read.py $digits.fru $digits.json), ipmi-fru: $(shown $digits.fru "Serial Number")"
done | tee seen
cmp seen - <<"SEEN"
0102: 0102 0102, ipmi-fru: 12
0908: 0908 0908, ipmi-fru: 98
12: 12 12, ipmi-fru: Error 'FRU invalid BCD encoding'
SEEN
