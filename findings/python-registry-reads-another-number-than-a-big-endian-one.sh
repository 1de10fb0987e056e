#!/bin/sh
# python-registry reads a number of type REG_DWORD_BIG_ENDIAN as 83886080, whatever it is.
#
# Guess: 1 for the bytes 00 00 00 01, as hivexsh prints it of the same hive.
# Seen on 2026-11-30, python-registry 1.3.1 (Python 3.11), hivex 1.3.23 (Debian 1.3.23-1+b1): four bytes of data are
# kept in the place of their offset, and it looks for them elsewhere: it takes the value's type, 5, for the number and
# turns its bytes. A docstring within has that type as "not currently supported"; a number comes back all the same.
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
fetch install --yes --download-only --no-install-recommends libhivex-bin=1.3.23-1+b1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check python-registry==1.3.1
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }

cat >hive.py <<"PROGRAM"
import struct


def cell(content):
    size = len(content) + 4 + 7 & ~7
    return struct.pack("<i", -size) + content.ljust(size - 4, b"\0")


# The smallest hive: a root key without values, and who may read it. hivexsh makes the rest.
owner = bytes.fromhex("01000480 14000000 24000000 00000000 34000000")
owner += bytes.fromhex("0102000000000005 20000000 20020000") * 2 + bytes.fromhex("0200 0800 00000000")
none, when = 0xFFFFFFFF, 133000000000000000
root = b"nk" + struct.pack("<HQ6I", 0x2C, when, 0, 0, 0, 0, none, none)
root += struct.pack("<9I2H", 0, none, 0x78, none, 0, 0, 0, 0, 0, 4, 0) + b"ROOT"
cells = cell(root) + cell(b"sk" + struct.pack("<H4I", 0, 0x78, 0x78, 1, len(owner)) + owner)
rest = 4096 - 32 - len(cells)
block = b"hbin" + struct.pack("<2I2QI", 0, 4096, 0, 0, 0) + cells + struct.pack("<i", rest) + bytes(rest - 4)
header = bytearray(b"regf" + struct.pack("<2IQ7I", 1, 1, when, 1, 5, 0, 1, 32, 4096, 1)).ljust(4096, b"\0")
checksum = 0
for (word,) in struct.iter_unpack("<I", header[:508]):
    checksum ^= word
struct.pack_into("<I", header, 508, checksum)
open("SYSTEM", "wb").write(header + block)
PROGRAM
python3 hive.py
cat >commands <<"COMMANDS"
add viostor
cd viostor
setval 3
Start
dword:3
One
hex:5:00,00,00,01
Many
hex:5:12,34,56,78
commit
COMMANDS
run hivexsh -w -f commands SYSTEM
printf 'cd \\viostor\nlsval\n' >list
run hivexsh -f list SYSTEM
cat >read.py <<"PROGRAM"
from Registry.Registry import Registry

for value in Registry("SYSTEM").open("viostor").values():
    print(value.name(), value.value_type_str(), value.value())
PROGRAM
venv/bin/python read.py | tee seen
cmp seen - <<"SEEN"
Start RegDWord 3
One RegBigEndian 83886080
Many RegBigEndian 83886080
SEEN
