#!/bin/sh
# `qemu-img resize --shrink IMAGE -100` makes a raw image of 1,636 bytes one of 1,948.
#
# Guess: 1,536. A size with a sign is "relative to the current size" (qemu-img's manual), and an absolute one is taken
# to the byte.
# Seen on 2026-11-29, qemu-img 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): the current size is first rounded up to 512, so
# that what is taken away or added begins there: 1,500 + 100 are 1,636, and 1,636 - 100 are 1,948. From 1,500 to 1,501
# it refuses without --shrink, and warns of data that would be lost, though the file grows.
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

size() { echo "$1: $(stat -c %s image)"; }
{
    truncate -s 1500 image && size "at first"
    run qemu-img resize -q -f raw image 1501 || size "1501, refused"
    run qemu-img resize -q -f raw image +100 && size "+100"
    run qemu-img resize -q --shrink -f raw image -- -100 && size "-100"
    run qemu-img resize -q --shrink -f raw image 1000 && size "1000"
} 2>/dev/null | tee seen
cmp seen - <<"SEEN"
at first: 1500
1501, refused: 1500
+100: 1636
-100: 1948
1000: 1000
SEEN
