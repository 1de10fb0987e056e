#!/bin/sh
# `qemu-img convert` from raw to raw makes a longer file where the size is no multiple of 512, and `compare` sees none of it.
#
# Guess: a raw image is its bytes, so that a raw copy of 1,000 bytes has 1,000 bytes and the same checksum.
# Seen on 2026-11-28, qemu-img 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): `info` gives the file of 1,000 bytes a virtual
# size of 1,024, the copy has 1,024, and `compare` says that the two are identical, with no word on their sizes.
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
fetch install --yes --download-only --no-install-recommends qemu-utils=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
head -c 1000 /dev/urandom >original
run qemu-img convert -f raw -O raw original copy
run qemu-img compare -f raw -F raw original copy
stat -c "%n %s" original copy
[ "$(stat -c %s original copy | tr "\n" " ")" = "1000 1024 " ]
if cmp -s original copy; then exit 1; fi
