#!/bin/sh
# jefferson, which unpacks JFFS2 images, makes one of the names of a file that has several: the others are not there.
#
# Guess: each name, as a hard link or as a copy; a firmware with busybox is such a file, a hundred names of one program.
# Seen on 2026-11-30, jefferson 0.4.8 (Python 3.11), an image by mkfs.jffs2 of mtd-utils 2.1.5 (Debian 1:2.1.5-1): of a
# file with three names and one with one it counts "dirent count: 2", writes two files and ends with 0. dissect.jffs
# 1.6 reads all four names of the same image.
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
fetch install --yes --download-only --no-install-recommends mtd-utils=1:2.1.5-1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check jefferson==0.4.8 dissect.jffs==1.6

mkdir tree
echo program >tree/busybox
ln tree/busybox tree/init
ln tree/busybox tree/sh
echo text >tree/text
LD_LIBRARY_PATH=$libraries unpacked/usr/sbin/mkfs.jffs2 --root=tree --output=image --eraseblock=64KiB
cat >list.py <<"PROGRAM"
from dissect.jffs import jffs2

root = jffs2.JFFS2(open("image", "rb"))
print("dissect.jffs:", *(f"{name}={root.get(name).open().read()}" for name in ("busybox", "init", "sh", "text")))
PROGRAM
{
    status=0
    venv/bin/jefferson --dest made image >said || status=$?
    echo "jefferson: status $status, $(find made -type f | wc --lines) of $(find tree -type f | wc --lines) files"
    grep -o "dirent count: .*" said
    venv/bin/python list.py
} | tee seen
cmp seen - <<"SEEN"
jefferson: status 0, 2 of 4 files
dirent count: 2
dissect.jffs: busybox=b'program\n' init=b'program\n' sh=b'program\n' text=b'text\n'
SEEN
