#!/bin/sh
# bincopy puts bytes of an Intel hex file at another address than other readers: the base of a segment still counts where
# a linear base has come behind it.
#
# Guess: the last of the records that set a base (types 02 and 04) is the base: the format has two kinds of address, by
# segment and linear, and not their sum.
# Seen on 2026-11-30, bincopy 20.1.1 (Python 3.11), intelhex 2.3.0, hexrec 0.5.1, srec_cat 1.64 (Debian 1.64-3): of a
# record of type 02 for 0x10000, data, one of type 04 for 0x10000 and data at 0x100 bincopy has the latter at 0x20100,
# the others at 0x10100; it says nothing. What is flashed from it has its second part 64 KiB further.
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
fetch install --yes --download-only --no-install-recommends srecord=1.64-3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check bincopy==20.1.1 intelhex==2.3.0 hexrec==0.5.1
cat >read.py <<"PROGRAM"
import bincopy
import hexrec
from intelhex import IntelHex


def record(kind: int, offset: int, data: bytes) -> str:
    line = bytes((len(data), offset >> 8, offset & 0xFF, kind)) + data
    return ":" + (line + bytes((-sum(line) & 0xFF,))).hex().upper() + "\n"


with open("image.hex", "w") as file:
    for kind, offset, data in ((2, 0, b"\x10\x00"), (0, 0x10, b"boot"), (4, 0, b"\x00\x01"), (0, 0x100, b"main"), (1, 0, b"")):
        file.write(record(kind, offset, data))
print("intelhex", *(hex(start) for start, _ in IntelHex("image.hex").segments()))
print("hexrec", *(hex(start) for start, _ in hexrec.load("image.hex").memory.to_blocks()))
print("bincopy", *(hex(segment.address) for segment in bincopy.BinFile("image.hex").segments))
PROGRAM
{
    venv/bin/python read.py
    LD_LIBRARY_PATH=$libraries unpacked/usr/bin/srec_cat image.hex -intel -output - -hex-dump | cut -d: -f1 |
        sed 's/^0*/0x/' | tr A-F a-f | paste -sd" " | sed "s/^/srec_cat /"
} | tee seen
cmp seen - <<"SEEN"
intelhex 0x10010 0x10100
hexrec 0x10010 0x10100
bincopy 0x10010 0x20100
srec_cat 0x10010 0x10100
SEEN
