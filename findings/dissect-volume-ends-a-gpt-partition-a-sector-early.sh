#!/bin/sh
# For dissect.volume a GPT partition ends one sector before its end, and what is in that sector cannot be read.
#
# Guess: the size that sfdisk made it with: the last block of an entry is part of the partition (UEFI specification).
# Seen on 2026-11-30, dissect.volume 3.18 (Python 3.11), sfdisk 2.38.1: a partition of 2,048 sectors has 2,047, and
# its stream ends there. A copy of a guest's partition made from it is short, and a file system that fills its
# partition is longer than that; the backup of NTFS's boot sector is just that sector. Partitions of an MBR have their
# size.
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

for label in gpt dos; do
    truncate -s 8M "$label.img"
    printf 'label: %s\nstart=2048, size=2048\n' "$label" | run sfdisk --quiet "$label.img"
    printf 'the last sector' | dd of="$label.img" bs=512 seek=4095 conv=notrunc status=none
done
cat >read.py <<"PROGRAM"
from dissect.volume.disk import Disk

for label in ("gpt", "dos"):
    with open(f"{label}.img", "rb") as image:
        [partition] = Disk(image).partitions
        content = partition.open().read()
        print(label, partition.offset // 512, partition.size // 512, len(content) // 512, b"the last sector" in content)
PROGRAM
venv/bin/python read.py | tee seen
cmp seen - <<"SEEN"
gpt 2048 2047 2047 False
dos 2048 2048 2048 True
SEEN
