#!/bin/sh
# e2mv of e2tools moves a folder of an ext image to another place and leaves its ".." where it was: e2fsck finds the file
# system damaged.
#
# Guess: ".." is the new parent, and the links of both are counted anew, as rename(2) has it; or folders are refused.
# Seen on 2026-11-30, e2tools 0.1.0 (Debian 0.1.0-3), e2fsprogs 1.47.0 (1.47.0-2+b2): status 0 and no word. `e2fsck -fn`
# of the image says "'..' in /to/moved (13) is /from (12), should be /to (14)" and ends with 4, as it would at the start
# of a guest. e2ls shows nothing of it. A file's move is clean.
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
fetch install --yes --download-only --no-install-recommends e2tools=0.1.0-3 e2fsprogs=1.47.0-2+b2
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "unpacked/$program" "$@"; }
truncate -s 8M image
run sbin/mke2fs -q -t ext4 image
echo text >file
run usr/bin/e2mkdir image:/from image:/to image:/from/moved
run usr/bin/e2cp file image:/from/file
check() {
    status=0
    run sbin/e2fsck -fn image >said 2>&1 || status=$?
    echo "$1: e2fsck $status $(grep -o "^'..' in .*" said || true)"
}
{
    check made
    run usr/bin/e2mv image:/from/file /to && check "file moved"
    run usr/bin/e2mv image:/from/moved /to && check "folder moved"
} | tee seen
cmp seen - <<"SEEN"
made: e2fsck 0 
file moved: e2fsck 0 
folder moved: e2fsck 4 '..' in /to/moved (13) is /from (12), should be /to (14).
SEEN
