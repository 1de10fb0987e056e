#!/bin/sh
# `qemu-img dd` counts its blocks from the image's beginning, so that `skip` takes from `count`; too few are a success.
#
# Guess: count=2 skip=3 copies blocks 3 and 4, as dd does, which it is named after and whose operands it has.
# Seen on 2026-11-29, qemu-img 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): skip=1 count=2 copies one block, skip=2 count=2
# none, skip=3 count=2 none with "cannot skip to specified offset", of an image of 16 blocks; the exit status is 0 each
# time. Without a count, skip is as it should be.
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
head -c 65536 /dev/urandom >image
for skip in 0 1 2 3; do
    run qemu-img dd -f raw -O raw bs=4k "skip=$skip" count=2 if=image of=copy
    dd bs=4k "skip=$skip" count=2 if=image of=expected status=none
    echo "skip=$skip: $(stat -c %s copy) bytes, dd has $(stat -c %s expected)"
done | tee seen
[ "$(cut -d " " -f 2 seen | tr "\n" " ")" = "8192 4096 0 0 " ]
[ "$(grep -c "dd has 8192" seen)" = 4 ]
