#!/bin/sh
# img2simg makes a sparse image of a raw one that is longer than it where the size is no multiple of 4,096.
#
# Guess: what comes back by simg2img is what went in, or the size is refused, as the format counts in blocks.
# Seen on 2026-11-29, img2simg and simg2img 29.0.6 (Debian 1:29.0.6-28): 1,000 bytes come back as 4,096 with zeros
# behind them, 1,048,576 + 512 bytes as 1,052,672, with status 0 and not a word from either.
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
fetch install --yes --download-only --no-install-recommends android-sdk-libsparse-utils=1:29.0.6-28
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
for size in 1000 1049088 1048576; do
    head -c $size /dev/urandom >image
    run img2simg image sparse
    run simg2img sparse back
    [ "$(head -c $size back | cmp - image)" = "" ]
    echo "$size -> $(stat -c %s back)"
done | tee seen
cmp seen - <<"SEEN"
1000 -> 4096
1049088 -> 1052672
1048576 -> 1048576
SEEN
