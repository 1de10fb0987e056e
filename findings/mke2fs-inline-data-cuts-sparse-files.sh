#!/bin/sh
# `mke2fs -d` cuts a sparse file off behind its last data where the file system has inline_data, and e2fsck finds it
# clean.
#
# Guess: a file in the image has the size that it has in the folder, whatever features the file system has.
# Seen on 2026-11-29, e2fsprogs 1.47.0 (Debian 1.47.0-2+b2): a file of 3 MiB with one byte in its middle has 1,500,160
# bytes in the image; without inline_data it has 3,145,728. A guest that maps it, or a disk image inside of an image,
# ends too early.
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
mkdir tree
truncate --size 3M tree/sparse
printf x | dd of=tree/sparse bs=1 seek=1500000 conv=notrunc status=none
for features in none inline_data; do
    run mke2fs -q -F -t ext4 -O "$features" -d tree image 16M
    run e2fsck -fn image >/dev/null 2>&1
    run debugfs -R "dump sparse copy" image 2>/dev/null
    echo "$features: $(stat -c %s copy) bytes of $(stat -c %s tree/sparse), e2fsck's status 0"
    rm image copy
done | tee seen
grep -q "^none: 3145728 " seen
grep -q "^inline_data: 1500160 " seen
