#!/bin/sh
# dissect.extfs reads a file of 2040 in an ext4 image as one of 2176, and one of 1960 as one of 2096.
#
# Guess: 2040 and 1960, as Linux, debugfs and 7-Zip read them: the seconds are signed, and two bits beside them count
# times of 2^32 seconds (the kernel's documentation of inodes has the table).
# Seen on 2026-11-30, dissect.extfs 3.15 (Python 3.11), of an image made by e2fsprogs 1.47.0 (Debian 1.47.0-2+b2): the
# seconds are read without a sign and the epoch is added, which is right from 1970 to 2038 only. 7-Zip 26.02
# (16.02+really26.02+dfsg-0+deb12u1) has all three dates. The Sleuth Kit 4.11.1 (4.11.1+dfsg-1+b1) has 2040 and, like
# dissect, 2096. No issue of these two found in a search; libyal/libfsext 14 is of the first half of it,
# diskfs/go-diskfs 334 mended the same.
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
    e2fsprogs=1.47.0-2+b2 p7zip-full=16.02+really26.02+dfsg-0+deb12u1 sleuthkit=4.11.1+dfsg-1+b1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check dissect.extfs==3.15
tool() {
    LD_LIBRARY_PATH=$libraries "$work/unpacked/$@"
}

export TZ=UTC0
mkdir folder
for year in 1960 2026 2040; do touch folder/$year; done
truncate --size 8M image
tool sbin/mke2fs -q -t ext4 -I 256 -d folder image
for year in 1960 2026 2040; do
    tool sbin/debugfs -w -R "set_inode_field $year mtime ${year}0601120000" image 2>/dev/null
done
cat >read.py <<"PROGRAM"
from dissect.extfs import ExtFS

with open("image", "rb") as file:
    read = ExtFS(file)
    print("dissect", *(f"{name}: {read.get(name).mtime.year}" for name in ("1960", "2026", "2040")))
PROGRAM
{
    echo "debugfs" $(for year in 1960 2026 2040; do
        tool sbin/debugfs -R "stat $year" image 2>/dev/null | sed -n "s/ *mtime: .* /$year: /p"
    done)
    echo "7z" $(tool usr/lib/p7zip/7z l image | sed -n "s/^\([0-9]*\)-.* \([0-9]*\)$/\2: \1/p")
    echo "fls" $(tool usr/bin/fls -l image | sed -n "s/^r.r [0-9]*:.\([0-9]*\).\([0-9]*\)-.*/\1: \2/p")
    venv/bin/python read.py
} | tee seen
cmp seen - <<"SEEN"
debugfs 1960: 1960 2026: 2026 2040: 2040
7z 1960: 1960 2026: 2026 2040: 2040
fls 1960: 2096 2026: 2026 2040: 2040
dissect 1960: 2096 2026: 2026 2040: 2176
SEEN
