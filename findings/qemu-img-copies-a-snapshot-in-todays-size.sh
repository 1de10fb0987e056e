#!/bin/sh
# `qemu-img convert -l` copies a snapshot in the size that the disk has today: what lay behind it is lost, with status 0.
#
# Guess: the copy is the snapshot as it was: its size is written beside it in the image, and `qemu-img snapshot -a` goes
# back to it.
# Seen on 2026-11-29, qemu-img 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3; 10.0.13 does the same): a snapshot of 2 MiB whose last
# half has data is 1 MiB after the disk was shrunk to that, so that the data are in no copy, and 4 MiB after it was made
# longer. `snapshot -a` has 2 MiB and the data both times. A backup that copies snapshots looks whole.
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
fetch install --yes --download-only --no-install-recommends qemu-utils=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
run qemu-img create -q -f qcow2 image 2M
run qemu-io -f qcow2 -c "write -q -P 0x61 1536k 512k" image
run qemu-img snapshot -c before image
for size in 1M 4M; do
    cp image other
    run qemu-img resize -q --shrink -f qcow2 other "$size"
    run qemu-img convert -f qcow2 -O raw -l before other copy
    run qemu-img snapshot -a before other
    run qemu-img convert -f qcow2 -O raw other applied
    for file in copy applied; do
        echo "disk of $size, $file: $(stat -c %s "$file") bytes, $(tr -cd a <"$file" | wc -c) of data"
    done
done | tee seen
cmp seen - <<"SEEN"
disk of 1M, copy: 1048576 bytes, 0 of data
disk of 1M, applied: 2097152 bytes, 524288 of data
disk of 4M, copy: 4194304 bytes, 524288 of data
disk of 4M, applied: 2097152 bytes, 524288 of data
SEEN
