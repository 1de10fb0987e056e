#!/bin/sh
# busybox's tar unpacks a sparse file of `tar --sparse` under another name, with the list of its holes in front of its
# data.
#
# Guess: it makes the file as it was, or refuses an archive of a kind that it does not know, as it does with the other
# format of sparse files ("unknown typeflag").
# Seen on 2026-11-29, GNU tar 1.34, busybox 1.35.0 (Debian 1:1.35.0-4+deb12u1+b1; 1.37.0 does the same): with
# --format=pax, what tar will write one day by default, a disk image of 4 MiB becomes GNUSparseFile.PID/disk.img of
# 8,704 bytes that begins with numbers as text, and the status is 0; so does 7-Zip 26.02. A guest that unpacks with
# busybox what its host has packed has another file, and none of the name.
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
fetch install --yes --download-only --no-install-recommends busybox=1:1.35.0-4+deb12u1+b1 \
    7zip=22.01+really26.02+dfsg-0+deb12u1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
truncate -s 4M disk.img
printf A | dd of=disk.img bs=1 seek=2M conv=notrunc status=none
printf B | dd of=disk.img bs=1 seek=4000K conv=notrunc status=none
for format in pax gnu; do
    tar --sparse --format=$format -cf $format.tar disk.img
    mkdir $format
    status=0
    (cd $format && LD_LIBRARY_PATH=$libraries "$work/unpacked/bin/busybox" tar -xf ../$format.tar) || status=$?
    find $format -type f -printf "busybox $format: %f in %h, %s bytes\n" | sed 's/File\.[0-9]*/File.PID/'
    echo "busybox $format: status $status"
done | tee seen
grep -qxF "busybox gnu: status 1" seen
run 7zz x -y -bso0 -osevenzip pax.tar
find sevenzip -type f -printf "7-Zip pax: %f in %h, %s bytes\n" | sed 's/File\.[0-9]*/File.PID/' | tee -a seen
find pax -name disk.img -exec head -n 1 {} + | tee -a seen
cmp seen - <<"SEEN"
busybox pax: disk.img in pax/GNUSparseFile.PID, 8704 bytes
busybox pax: status 0
busybox gnu: status 1
7-Zip pax: disk.img in sevenzip/GNUSparseFile.PID, 8704 bytes
3
SEEN
