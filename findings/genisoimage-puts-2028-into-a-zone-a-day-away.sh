#!/bin/sh
# genisoimage writes the dates of files from 2028 on with a time zone of minus 24 hours, by which 7-Zip shows and
# unpacks them a day late.
#
# Guess: the zone of the machine, or none (0), as it writes up to 2027 and as xorriso writes always. ECMA-119 has a
# byte of quarters of an hour from -48 to 52 for it.
# Seen on 2026-11-30, genisoimage 1.1.11 (Debian 9:1.1.11-3.4), xorriso 1.5.4 (1.5.4-4), 7-Zip 26.02
# (16.02+really26.02+dfsg-0+deb12u1): the byte is -96 for each date whose year, counted from 1900, is more than 127,
# in the records of ISO 9660 and in those of Rock Ridge alike, whatever TZ is. isoinfo and bsdtar show the day as it
# was, so that readers disagree from 2028 on. Not in genisoimage(1), and nothing found in a search.
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
    genisoimage=9:1.1.11-3.4 xorriso=1.5.4-4 libarchive-tools=3.6.2-1+deb12u5 p7zip-full=16.02+really26.02+dfsg-0+deb12u1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
tool() {
    LD_LIBRARY_PATH=$libraries "$work/unpacked/$@"
}

export TZ=UTC0
mkdir folder
for day in 2026-06-01 2027-12-31 2028-01-01 2040-02-29; do touch -d "$day 12:00" folder/$day; done
tool usr/bin/genisoimage -quiet -R -o genisoimage.iso folder
tool usr/bin/xorriso -as mkisofs -quiet -o xorriso.iso folder 2>/dev/null
cat >read.py <<"PROGRAM"
import sys

with open(sys.argv[1], "rb") as file:
    image = file.read()
root = image[16 * 2048 + 156 :]
place = int.from_bytes(root[2:6], "little") * 2048
zones = []
while length := image[place]:
    record = image[place : place + length]
    zones.append((1900 + record[18], int.from_bytes(record[24:25], signed=True)))
    place += length
print("years and zones", *(f"{year}: {zone}" for year, zone in zones[2:]))
PROGRAM
for made in genisoimage xorriso; do
    echo "$made: $(python3 read.py $made.iso)"
    tool usr/lib/p7zip/7z l $made.iso | sed -n "s/^\(....-..-..\) .* \(....-..-..\)$/7z shows \2 as \1/p"
    mkdir unpacked-$made
    tool usr/bin/bsdtar -xf $made.iso -C unpacked-$made
    stat --format "bsdtar unpacks %n as %y" unpacked-$made/* | sed "s,unpacked-$made/,,; s/ 12:00.*//"
done | tee seen
cmp seen - <<"SEEN"
genisoimage: years and zones 2026: 0 2027: 0 2028: -96 2040: -96
7z shows 2026-06-01 as 2026-06-01
7z shows 2027-12-31 as 2027-12-31
7z shows 2028-01-01 as 2028-01-02
7z shows 2040-02-29 as 2040-03-01
bsdtar unpacks 2026-06-01 as 2026-06-01
bsdtar unpacks 2027-12-31 as 2027-12-31
bsdtar unpacks 2028-01-01 as 2028-01-01
bsdtar unpacks 2040-02-29 as 2040-02-29
xorriso: years and zones 2026: 0 2027: 0 2028: 0 2040: 0
7z shows 2026-06-01 as 2026-06-01
7z shows 2027-12-31 as 2027-12-31
7z shows 2028-01-01 as 2028-01-01
7z shows 2040-02-29 as 2040-02-29
bsdtar unpacks 2026-06-01 as 2026-06-01
bsdtar unpacks 2027-12-31 as 2027-12-31
bsdtar unpacks 2028-01-01 as 2028-01-01
bsdtar unpacks 2040-02-29 as 2040-02-29
SEEN
