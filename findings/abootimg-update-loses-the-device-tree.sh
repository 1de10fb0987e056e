#!/bin/sh
# abootimg, told to put another kernel into a boot image, leaves out its device tree and the end of its command line.
#
# Guess: everything but the kernel stays, as for an image of the first kind; or the version in the header is refused, as
# the ones of version 3 are.
# Seen on 2026-11-30, abootimg 0.6 (Debian 0.6-1+b2), images by mkbootimg 29.0.6 (1:29.0.6-28): it does not look at the
# version. Of an image of version 2 `abootimg -u IMAGE -k KERNEL` keeps the ramdisk, takes the kernel and says "Writing
# Boot Image", status 0; the tree is gone, its size in the header 0, and of the 639 characters of the command line the
# first 512 are there, in version 0 as well, which has the rest in a field further on.
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
fetch install --yes --download-only --no-install-recommends abootimg=0.6-1+b2 mkbootimg=1:29.0.6-28
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "unpacked/usr/bin/$program" "$@"; }
for part in kernel ramdisk tree; do head -c 3000 /dev/urandom >$part; done
line=$(seq -s " " -f "option%03g=value" 40)
read_back() {
    rm -rf "$2.parts"
    python3 unpacked/usr/bin/unpack_bootimg --boot_img "$2" --out "$2.parts" >said
    text=$(sed -n 's/^command line args: //p' said)$(sed -n 's/^additional command line args: //p' said)
    [ -e "$2.parts/dtb" ] && cmp -s tree "$2.parts/dtb" && tree="the tree" || tree="no tree"
    cmp -s "$2.parts/kernel" kernel && kernel="the kernel" || kernel="another kernel"
    echo "$1: $kernel, $tree, $(printf %s "$text" | wc --chars) of ${#line} characters"
}
{
    python3 unpacked/usr/bin/mkbootimg --header_version 2 --kernel kernel --ramdisk ramdisk --dtb tree \
        --cmdline "$line" --output 2.img
    read_back "version 2, made" 2.img
    python3 unpacked/usr/bin/mkbootimg --header_version 0 --kernel kernel --ramdisk ramdisk --cmdline "$line" --output 0.img
    read_back "version 0, made" 0.img
    head -c 3000 /dev/urandom >kernel
    for version in 2 0; do
        run abootimg -u $version.img -k kernel >/dev/null
        read_back "version $version, status $?" $version.img
    done
} | tee seen
cmp seen - <<"SEEN"
version 2, made: the kernel, the tree, 639 of 639 characters
version 0, made: the kernel, no tree, 639 of 639 characters
version 2, status 0: the kernel, no tree, 512 of 639 characters
version 0, status 0: the kernel, no tree, 512 of 639 characters
SEEN
