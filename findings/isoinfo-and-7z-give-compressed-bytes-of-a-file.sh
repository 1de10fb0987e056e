#!/bin/sh
# isoinfo and 7-Zip give a file of an ISO 9660 image as the compressed bytes that it is stored in, with their length,
# and succeed.
#
# Guess: its text, as Linux, bsdtar and xorriso read it; who does not know the compression (zisofs) says so, as pycdlib
# does.
# Seen on 2026-11-29, isoinfo 1.1.11 (Debian 9:1.1.11-3.4), 7-Zip 22.01 (really 26.02), libarchive 3.6.2, xorriso 1.5.4:
# of a file of 200,000 bytes in an image by xorriso's filter --zisofs they have 846 bytes, and list it with them. The
# image says of the file what it is (Rock Ridge's ZF), and how long.
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
    genisoimage=9:1.1.11-3.4 7zip=22.01+really26.02+dfsg-0+deb12u1 xorriso=1.5.4-4 \
    libarchive-tools=3.6.2-1+deb12u5
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }

mkdir folder
yes "some text to compress" | head -c 200000 >folder/log.txt
run xorriso -outdev image.iso -map folder / -find / -type f -exec set_filter --zisofs -- -commit 2>remarks
{
    run isoinfo -R -i image.iso -x /log.txt >file && echo "isoinfo: status 0, $(wc -c <file) bytes"
    run 7zz e -so image.iso log.txt >file 2>remarks && echo "7-Zip: status 0, $(wc -c <file) bytes"
    run bsdtar -xOf image.iso log.txt >file && cmp file folder/log.txt && echo "bsdtar: status 0, the text"
    run xorriso -indev image.iso -osirrox on -extract /log.txt file 2>remarks && cmp file folder/log.txt &&
        echo "xorriso: status 0, the text"
} | tee seen
cmp seen - <<"SEEN"
isoinfo: status 0, 846 bytes
7-Zip: status 0, 846 bytes
bsdtar: status 0, the text
xorriso: status 0, the text
SEEN
