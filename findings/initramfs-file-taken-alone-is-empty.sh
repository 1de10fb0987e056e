#!/bin/sh
# One file read out of an initramfs is empty, with status 0, where the archive has another hard link of it behind.
#
# Guess: under each of its names the file has its bytes; or it is said that they are with another name.
# Seen on 2026-11-29, cpio 2.13, bsdtar 3.6.2 and busybox 1.35.0 (Debian 12's packages): in the format that the kernel unpacks
# (newc) the bytes stand with the last of the names, and the others have size 0. Read to standard output under one of those,
# all three write nothing and succeed; as a file cpio alone has it whole. So a program of an initramfs that is a link
# of busybox may be listed, and looked at, as 0 bytes.
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
fetch install --yes --download-only --no-install-recommends cpio=2.13+dfsg-7.1 \
    libarchive-tools=3.6.2-1+deb12u5 busybox-static=1:1.35.0-4+deb12u1+b1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$(find "$work/unpacked" -name "$program" -path "*bin/*" | head -n 1)" "$@"; }
mkdir tree
echo "the program" >tree/a
ln tree/a tree/b
ln tree/a tree/c
(cd tree && printf '%s\n' a b c | run cpio --quiet -o -H newc >../initramfs)
run bsdtar -tvf initramfs | awk '{print "listed: " $9 " " $5 " bytes"}' >seen
for name in a b c; do
    for program in cpio bsdtar busybox; do
        status=0
        case $program in
        cpio) run cpio --quiet -i --to-stdout "$name" <initramfs >out || status=$? ;;
        bsdtar) run bsdtar -xOf initramfs "$name" >out || status=$? ;;
        *) run busybox cpio -i --to-stdout "$name" <initramfs >out 2>log || status=$? ;;
        esac
        echo "$name by $program: $(stat -c %s out) bytes, status $status"
    done
done >>seen
cat seen
cmp seen - <<"SEEN"
listed: b 0 bytes
listed: a 0 bytes
listed: c 12 bytes
a by cpio: 0 bytes, status 0
a by bsdtar: 0 bytes, status 0
a by busybox: 0 bytes, status 0
b by cpio: 0 bytes, status 0
b by bsdtar: 0 bytes, status 0
b by busybox: 0 bytes, status 0
c by cpio: 12 bytes, status 0
c by bsdtar: 12 bytes, status 0
c by busybox: 12 bytes, status 0
SEEN
