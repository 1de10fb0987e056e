#!/bin/sh
# unsquashfs, cpio and isoinfo, asked for a file that the image does not have, make nothing, say nothing and succeed.
#
# Guess: a failure that names the file, as with tar, bsdtar and xorriso; a file that was asked for by its name is one
# that somebody needs.
# Seen on 2026-11-29, unsquashfs 4.5.1 (4.6.1 does the same), cpio 2.13 and isoinfo of genisoimage 1.1.11 (Debian 12):
# each ends with 0 and not a word of the name, on neither output. A script that takes the kernel out of a guest's image
# goes on with an empty file, or with the one of yesterday.
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
fetch install --yes --download-only --no-install-recommends squashfs-tools=1:4.5.1-1 cpio=2.13+dfsg-7.1 \
    genisoimage=9:1.1.11-3.4 libarchive-tools=3.6.2-1+deb12u5 xorriso=1.5.4-4
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
PATH="$work/unpacked/usr/bin:$work/unpacked/bin:$PATH"
export PATH LD_LIBRARY_PATH="$libraries"
mkdir tree && echo a >tree/initrd
(cd tree && echo initrd | cpio --quiet -o -H newc) >tree.cpio
mksquashfs tree tree.squashfs -quiet -no-progress >/dev/null 2>&1
genisoimage -quiet -R -o tree.iso tree
ask() {
    name=$1 && shift
    status=0
    "$@" >said 2>&1 || status=$?
    echo "$name: status $status, names it $(grep -c vmlinuz said || :) times"
}
{
    ask unsquashfs unsquashfs -q -n -d out tree.squashfs vmlinuz
    ask cpio sh -c "cpio --quiet -i vmlinuz <tree.cpio"
    ask isoinfo isoinfo -R -i tree.iso -x /vmlinuz
    ask xorriso xorriso -osirrox on -indev tree.iso -extract /vmlinuz vmlinuz
    ask bsdtar bsdtar -xf tree.cpio vmlinuz
} | tee seen
[ -z "$(find . -name vmlinuz)" ]
grep -c "status 0, names it 0 times" seen | grep -qx 3
grep -qE "^xorriso: status [1-9].*names it [1-9]" seen
grep -qE "^bsdtar: status [1-9].*names it [1-9]" seen
