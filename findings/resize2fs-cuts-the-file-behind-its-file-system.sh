#!/bin/sh
# resize2fs makes a file as long as the file system in it: what lies behind is cut off, even where the file system
# grows.
#
# Guess: the file keeps its length, as a partition does ("does not manipulate the size of partitions", resize2fs(8)); at
# most it grows.
# Seen on 2026-11-29, resize2fs 1.47.0 (Debian 1.47.0-2+b2; 1.47.2 does the same): of a file of 16 MiB with a file
# system of 8 MiB at its begin and a text at its end, growing to 12 MiB leaves 12 MiB, shrinking to 4 MiB leaves 4 MiB,
# and the text is gone, with status 0 and nothing said of the file. What images keep behind a root file system (a tree
# of hashes, a second file system, a table's copy) is lost by growing into free room.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
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
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
for size in 12M 4M; do
    rm -f image
    truncate -s 8M image
    LD_LIBRARY_PATH=$libraries "$work/unpacked/sbin/mke2fs" -q -F image
    truncate -s 16M image
    echo "what lies behind" >>image
    LD_LIBRARY_PATH=$libraries "$work/unpacked/sbin/resize2fs" image $size >said 2>&1
    echo "$size: status $?, $(stat -c %s image) bytes, the text is there $(grep -c "what lies behind" image || :) times"
done | tee seen
cmp seen - <<"SEEN"
12M: status 0, 12582912 bytes, the text is there 0 times
4M: status 0, 4194304 bytes, the text is there 0 times
SEEN
