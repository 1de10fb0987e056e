#!/bin/sh
# dissect.volume numbers the logical partitions of a disk from where it finds the extended one, so that two have one
# number.
#
# Guess: as every other program: 1 to 4 are the entries of the table, and the logical ones are 5, 6 and so on (vda5).
# Seen on 2026-11-30, dissect.volume 3.18 (Python 3.11), sfdisk 2.38.1: with the extended partition in the second
# entry vda5 and vda6 are 2 and 3, and the third entry is 3 as well; a table by number loses one of them. The extended
# partition itself is not among them. Numbers of a GPT disk are those of its entries.
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
fetch install --yes --download-only --no-install-recommends fdisk=2.38.1-5+deb12u3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check dissect.volume==3.18
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/sbin/$program" "$@"; }

truncate -s 16M disk.img
run sfdisk --quiet disk.img <<"TABLE"
label: dos
1 : start=2048, size=2048, type=83
2 : start=8192, size=20480, type=5
3 : start=6144, size=2048, type=c
5 : start=10240, size=2048, type=83
6 : start=14336, size=2048, type=82
TABLE
run sfdisk --dump disk.img | grep start
cat >read.py <<"PROGRAM"
from dissect.volume.disk import Disk

with open("disk.img", "rb") as image:
    for partition in Disk(image).partitions:
        print(partition.number, partition.offset // 512)
PROGRAM
venv/bin/python read.py | tee seen
cmp seen - <<"SEEN"
1 2048
2 10240
3 14336
3 6144
SEEN
