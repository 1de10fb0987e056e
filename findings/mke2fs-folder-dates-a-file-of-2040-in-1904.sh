#!/bin/sh
# A file of 2040 is of 1904 in an ext4 image that mke2fs -d made of its folder, and one of 2110 is of 1974.
#
# Guess: the same date: with inodes of 256 bytes ext4 has dates up to 2446, in nanoseconds, and mke2fs(8) says of
# these inodes that they "support extended timestamps", for which tools ask for them (pengutronix/genimage 100).
# Seen on 2026-11-30, e2fsprogs 1.47.0 (Debian 1.47.0-2+b2): the lower 32 bits of the seconds alone are written, the
# two bits of the epoch and the nanoseconds beside them are 0; debugfs reads it as Linux does. Its own set_inode_field
# writes 2040 so that debugfs reads 2040 (epoch 1). No word from mke2fs, and none of it in its manual. Dates from 1901
# to 2038 are right.
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
    e2fsprogs=1.47.0-2+b2
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
tool() {
    LD_LIBRARY_PATH=$libraries "$work/unpacked/$@"
}

export TZ=UTC0
mkdir folder
for year in 1960 2026 2040 2110; do
    touch -d "$year-06-01 12:00:00.5" folder/$year
done
truncate --size 8M image
tool sbin/mke2fs -q -t ext4 -I 256 -d folder image
{
    for year in 1960 2026 2040 2110; do
        echo "$year: $(tool sbin/debugfs -R "stat $year" image 2>/dev/null | sed -n "s/ *mtime: *//p")"
    done
    tool sbin/debugfs -w -R "set_inode_field 2040 mtime 20400601120000" image 2>/dev/null
    echo "set by debugfs: $(tool sbin/debugfs -R "stat 2040" image 2>/dev/null | sed -n "s/ *mtime: *//p")"
} | tee seen
cmp seen - <<"SEEN"
1960: 0xedf91540:00000000 -- Wed Jun  1 12:00:00 1960
2026: 0x6a1d7440:00000000 -- Mon Jun  1 12:00:00 2026
2040: 0x84738b40:00000000 -- Tue Apr 26 05:31:44 1904
2110: 0x081cb840:00000000 -- Thu Apr 25 05:31:44 1974
set by debugfs: 0x84738b40:00000001 -- Fri Jun  1 12:00:00 2040
SEEN
