#!/bin/sh
# paxcpio and toybox's cpio unpack a file with several names from an initramfs archive as empty files.
#
# Guess: each name has the bytes. In the format "newc" they stand with the last name alone, as GNU cpio writes it and the
# kernel unpacks it; busybox in an initramfs is such a file.
# Seen on 2026-11-30, pax 20201030 (Debian 1:20201030-1), toybox 0.8.9 (0.8.9+dfsg-1), archives by cpio 2.13
# (2.13+dfsg-7.1): with paxcpio all three names are links to one empty file, with toybox the last name has the bytes and
# the others are empty files of their own; both with status 0 and no word. bsdcpio 3.6.2, busybox and cpio itself give
# bytes to all. Of an archive in the old format "odc", where they stand with each name, paxcpio gives all.
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
fetch install --yes --download-only --no-install-recommends \
    cpio=2.13+dfsg-7.1 pax=1:20201030-1 toybox=0.8.9+dfsg-1 busybox-static=1:1.35.0-4+deb12u1+b1 \
    libarchive-tools=3.6.2-1+deb12u5
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
export LD_LIBRARY_PATH=$libraries
mkdir tree
echo program >tree/busybox
ln tree/busybox tree/init
ln tree/busybox tree/sh
echo text >tree/text
for format in newc odc; do
    (cd tree && printf '%s\n' busybox init sh text | ../unpacked/bin/cpio --quiet --create --format=$format) >$format
done
unpack() { # archive, a word for the tool, the tool
    archive=$1 && name=$2 && shift 2
    rm -rf made && mkdir made
    status=0
    (cd made && "$@" <"../$archive" >/dev/null 2>&1) || status=$?
    sizes=$(cd made && stat -c %n=%s busybox init sh text | paste -sd" ")
    echo "$archive, $name: status $status, $sizes"
}
{
    unpack newc cpio ../unpacked/bin/cpio --extract --quiet
    unpack newc busybox ../unpacked/bin/busybox cpio -i
    unpack newc bsdcpio ../unpacked/usr/bin/bsdcpio -i
    unpack newc toybox ../unpacked/bin/toybox cpio -i
    unpack newc paxcpio ../unpacked/bin/paxcpio -i
    unpack odc paxcpio ../unpacked/bin/paxcpio -i
} | tee seen
cmp seen - <<"SEEN"
newc, cpio: status 0, busybox=8 init=8 sh=8 text=5
newc, busybox: status 0, busybox=8 init=8 sh=8 text=5
newc, bsdcpio: status 0, busybox=8 init=8 sh=8 text=5
newc, toybox: status 0, busybox=0 init=0 sh=8 text=5
newc, paxcpio: status 0, busybox=0 init=0 sh=0 text=5
odc, paxcpio: status 0, busybox=8 init=8 sh=8 text=5
SEEN
