#!/bin/sh
# nbdkit's filter `gzip` serves the first member of a gzip file, and the disk ends there; nothing is said of the rest.
#
# Guess: a gzip file is any number of members one after the other (RFC 1952, 2.2), as `cat a.gz b.gz` and parallel
# compressors make it, and as gunzip reads it; and nbdkit's own filter `xz` reads all streams of its format.
# Seen on 2026-11-29, nbdkit 1.32.5 (Debian 1.32.5-1; 1.42.3 does the same): of two members of 1 MiB each the export has
# 1 MiB and nbdcopy ends with 0; of two streams of xz it has 2 MiB. A guest finds a partition table of a disk that is
# shorter than the table says.
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
fetch install --yes --download-only --no-install-recommends nbdkit=1.32.5-1 libnbd-bin=1.14.2-1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
filters=$(dirname "$(find "$work/unpacked" -name "nbdkit-gzip-filter.so")")
file=$(find "$work/unpacked" -name "nbdkit-file-plugin.so")
export copy="$work/unpacked/usr/bin/nbdcopy"
head -c 1M /dev/urandom >first
head -c 1M /dev/urandom >second
for each in gzip xz; do
    { "$each" -c first && "$each" -c second; } >"disk.$each"
    [ "$("$each" -dc "disk.$each" | wc -c)" = 2097152 ]
    # shellcheck disable=SC2016 # nbdkit's shell is to put them in
    LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/nbdkit" -f -U - --filter="$filters/nbdkit-$each-filter.so" \
        "$file" "disk.$each" --run '"$copy" "$uri" out'
    echo "$each: status $?, $(stat -c %s out) bytes"
    rm out
done | tee seen
cmp seen - <<"SEEN"
gzip: status 0, 1048576 bytes
xz: status 0, 2097152 bytes
SEEN
