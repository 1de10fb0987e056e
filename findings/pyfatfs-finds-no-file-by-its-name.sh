#!/bin/sh
# pyfatfs finds no file that mtools or a Linux guest has written by a short name of small letters.
#
# Guess: FAT's names are the same in capitals and small letters, so that "config" is found however it is written; and a
# name that says by its case bits that it is of small letters is listed so, as Linux and mtools do.
# Seen on 2026-11-29, pyfatfs 1.1.0 (Python 3.11), mtools 4.0.32 and dosfstools 4.2 (Debian 12): mcopy writes "config",
# mdir lists "config"; pyfatfs lists "CONFIG" and opens that alone: "config" is ResourceNotFound. dissect.fat 3.13 opens
# both.
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
fetch install --yes --download-only --no-install-recommends mtools=4.0.33-1+really4.0.32-1 dosfstools=4.2-1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$(find "$work/unpacked" -name "$program" -path "*bin/*" | head -n 1)" "$@"; }
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pyfatfs==1.1.0 dissect.fat==3.13 setuptools==80.9.0
cat >read.py <<"PROGRAM"
from dissect.fat import FATFS
from pyfatfs.PyFatFS import PyFatFS

image = PyFatFS("image", read_only=True)
print("listed", image.listdir("/"))
print("pyfatfs", image.exists("/config"), image.exists("/CONFIG"))
with open("image", "rb") as file:
    image = FATFS(file)
    print("dissect.fat", [image.get(name).open().read() for name in ("config", "CONFIG")])
PROGRAM
echo hello >config
truncate --size 16M image
run mkfs.fat -F 16 image
run mcopy -i image config ::
run mdir -b -i image ::
venv/bin/python read.py 2>warnings | tee seen
grep -q "^listed \['CONFIG'\]$" seen
grep -q "^pyfatfs False True$" seen
grep -q "^dissect.fat \[b'hello.*b'hello" seen
