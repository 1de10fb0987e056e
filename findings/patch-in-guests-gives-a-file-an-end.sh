#!/bin/sh
# busybox's and toybox's patch put a newline at the end of a file that has none; busybox's leaves the files that a patch
# removes.
#
# Guess: "\ No newline at end of file" is obeyed, as diff writes it and GNU patch reads it, and a file whose other side is
# /dev/null is removed; or the patch is refused.
# Seen on 2026-11-30, busybox 1.35.0 (Debian 1:1.35.0-4+deb12u1+b1), toybox 0.8.9 (0.8.9+dfsg-1), GNU patch 2.7.6
# (2.7.6-7), the change is of a line before the last: status 0 and no word. The file has a byte more than where the patch
# was made, and another checksum, in a guest only; what was removed is still there with 0 bytes. Where the last line
# itself is changed both fail with status 1.
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
fetch install --yes --download-only --no-install-recommends busybox-static=1:1.35.0-4+deb12u1+b1 toybox=0.8.9+dfsg-1 patch=2.7.6-7
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
mkdir before after
printf "one\ntwo\nthree" >before/changed
printf "one\n2\nthree" >after/changed
echo text >before/removed
diff --recursive --unified --new-file before after >change || true
for tool in "usr/bin/patch" "bin/busybox patch" "bin/toybox patch"; do
    rm -rf tree && cp -R before tree
    status=0
    # shellcheck disable=SC2086
    (cd tree && LD_LIBRARY_PATH=$libraries ../unpacked/$tool -p1 <../change >../said 2>&1) || status=$?
    removed="is gone" && [ -e tree/removed ] && removed="has $(stat -c %s tree/removed) bytes"
    echo "${tool#*bin/}: status $status, changed has $(stat -c %s tree/changed) of $(stat -c %s after/changed) bytes, removed $removed"
done | tee seen
cmp seen - <<"SEEN"
patch: status 0, changed has 11 of 11 bytes, removed is gone
busybox patch: status 0, changed has 12 of 11 bytes, removed has 0 bytes
toybox patch: status 0, changed has 12 of 11 bytes, removed is gone
SEEN
