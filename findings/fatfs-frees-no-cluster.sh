#!/bin/sh
# The npm package fatfs, which writes a shorter file over one, marks the clusters that are free then with a number that is
# no cluster's: mtools refuses the disk from then on.
#
# Guess: they are free, 0, and others read the disk; the README says of what is left out (second FAT, free count) that it
# does "not seem to affect interop".
# Seen on 2026-11-30, fatfs 0.10.8 (Node.js 20), dosfstools 4.2 (Debian 4.2-1), mtools 4.0.33 (4.0.33-1+really4.0.32-1):
# the mark is 0xff00, of FAT32 0x0fffff00, neither free nor an end. fatfs reads its file back whole. mdir says "Probably
# non MS-DOS disk" and shows nothing, nor what was there before; fsck.fat -n finds them "out of range". A first write, and
# one that makes a file longer, is read by all.
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
fetch install --yes --download-only --no-install-recommends mtools=4.0.33-1+really4.0.32-1 dosfstools=4.2-1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "unpacked/$program" "$@"; }
npm install --silent --no-audit --no-fund fatfs@0.10.8 >/dev/null
cat >write.js <<"PROGRAM"
const fs = require("fs");
const file = fs.openSync("disk", "r+");
const volume = {
  sectorSize: 512,
  numSectors: fs.fstatSync(file).size / 512,
  readSectors(sector, bytes, done) {
    fs.readSync(file, bytes, 0, bytes.length, sector * 512);
    done(null);
  },
  writeSectors(sector, bytes, done) {
    fs.writeSync(file, bytes, 0, bytes.length, sector * 512);
    done(null);
  },
};
const disk = require("fatfs").createFileSystem(volume);
const bytes = fs.readFileSync(process.argv[2]);
disk.writeFile("/file", bytes, (error) => {
  if (error) throw error;
  disk.readFile("/file", (error, read) => {
    if (error) throw error;
    console.log(`fatfs wrote ${process.argv[2]}:`, bytes.equals(read) ? "whole" : "damaged");
  });
});
PROGRAM
head -c 100K /dev/urandom >long
head -c 1K /dev/urandom >short
look() {
    status=0
    run usr/bin/mdir -b -i disk :: >said 2>remarks || status=$?
    echo "$1: mdir $status, $(grep -c "^::" said || true) files $(grep -o "Probably non MS-DOS disk" remarks || true)"
    run sbin/fsck.fat -n disk >said || true
    echo "$1: fsck.fat, $(grep -c "out of range" said || true) clusters out of range"
}
for bits in 16 32; do
    rm -f disk && truncate -s 64M disk
    run sbin/mkfs.fat -F $bits -s $((bits == 16 ? 4 : 1)) disk >/dev/null
    run usr/bin/mcopy -i disk short ::before
    for bytes in long short; do
        node write.js $bytes
        look "FAT$bits"
    done
done | tee seen
cmp seen - <<"SEEN"
fatfs wrote long: whole
FAT16: mdir 0, 2 files 
FAT16: fsck.fat, 0 clusters out of range
fatfs wrote short: whole
FAT16: mdir 1, 0 files Probably non MS-DOS disk
FAT16: fsck.fat, 49 clusters out of range
fatfs wrote long: whole
FAT32: mdir 0, 2 files 
FAT32: fsck.fat, 0 clusters out of range
fatfs wrote short: whole
FAT32: mdir 1, 0 files Probably non MS-DOS disk
FAT32: fsck.fat, 199 clusters out of range
SEEN
