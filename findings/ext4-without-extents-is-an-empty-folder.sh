#!/bin/sh
# The package ext4 opens a file system without extents, and its root is an empty folder.
#
# Guess: it says that it cannot read it; or it can, as ext4 itself has the older block maps too, and files of a disk
# that was ext3 once still have them.
# Seen on 2026-11-29, ext4 1.4.1 (Python 3.11), a file system by e2fsprogs 1.47.0 (Debian 1.47.0-2+b2) of type ext4 with
# ^extent: no entries, no error. dissect.extfs 3.15 lists the file.
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
fetch install --yes --download-only --no-install-recommends e2fsprogs=1.47.0-2+b2
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/sbin/$program" "$@"; }
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ext4==1.4.1 dissect.extfs==3.15
cat >read.py <<"PROGRAM"
import ext4
from dissect.extfs import ExtFS

with open("image", "rb") as file:
    print("ext4", [bytes(entry.name) for entry, _ in ext4.Volume(file).root.opendir()])
with open("image", "rb") as file:
    print("dissect.extfs", "file" in ExtFS(file).get("/").listdir())
PROGRAM
mkdir tree
echo hello >tree/file
run mke2fs -q -F -t ext4 -O "^extent,^64bit" -d tree image 16M
run e2fsck -fn image >/dev/null 2>&1
venv/bin/python read.py | tee seen
grep -q "^ext4 \[\]$" seen
grep -q "^dissect.extfs True$" seen
