#!/bin/sh
# Readers of ext4 open a file system with inline_data, and its small directories are empty and its long links cut for
# them.
#
# Guess: inline_data is an incompatible feature: who does not know it must refuse the file system, as the kernel's
# documentation says of such; who opens it reads it.
# Seen on 2026-11-29, dissect.extfs 3.15 and ext4 1.4.1 (Python 3.11), a file system by e2fsprogs 1.47.0 (Debian
# 1.47.0-2+b2): both read small files, for which the feature is best known; the one file of a directory is in the list
# of neither, and a link of 121 characters has 60 for dissect.extfs, without an error.
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
venv/bin/pip install --quiet --disable-pip-version-check dissect.extfs==3.15 ext4==1.4.1
cat >read.py <<"PROGRAM"
import os

import ext4
from dissect.extfs import ExtFS

target = os.readlink("tree/link")
with open("image", "rb") as file:
    found = ExtFS(file)
    print("dissect.extfs file", found.get("small").open().read())
    print("dissect.extfs folder", "inner" in found.get("folder").listdir())
    print("dissect.extfs link", len(found.get("link").link), "of", len(target))
with open("image", "rb") as file:
    found = ext4.Volume(file)
    print("ext4 file", found.inode_at("/small").open().read())
    print("ext4 folder", any(b"inner" in bytes(entry.name) for entry, _ in found.inode_at("/folder").opendir()))
PROGRAM
mkdir -p tree/folder
echo hello >tree/small
echo inner >tree/folder/inner
ln -s "$(printf "a/%.0s" $(seq 60))x" tree/link
run mke2fs -q -F -t ext4 -O inline_data -I 256 -d tree image 16M
run e2fsck -fn image >/dev/null 2>&1
run debugfs -R "ls -p folder" image 2>/dev/null | grep inner
venv/bin/python read.py 2>warnings | tee seen
grep -q "^dissect.extfs file b'hello" seen
grep -q "^dissect.extfs folder False$" seen
grep -q "^dissect.extfs link 60 of 121$" seen
grep -q "^ext4 file b'hello" seen
grep -q "^ext4 folder False$" seen
