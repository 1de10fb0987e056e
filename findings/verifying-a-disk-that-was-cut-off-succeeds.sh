#!/bin/sh
# sfdisk and sgdisk verify a disk of which the end is missing, and its second table with it, with status 0.
#
# Guess: an error, and a status that is not 0: that the table and its copy are whole is what --verify is for.
# Seen on 2026-11-29, sfdisk 2.38.1 (Debian 2.38.1-5+deb12u3), sgdisk 1.0.9 (2.1): of a GPT disk whose last MiB was cut
# off sfdisk says "No errors detected.", and gives it as an MBR disk with one partition of type ee; sgdisk says
# "Identified 5 problems!". Of one whose last sector, the second header, was overwritten, sgdisk says "No problems
# found": what it verifies is the header that it has made anew itself. All four end with 0. sfdisk's remarks are on the
# other output, about what "will be corrected by write".
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
fetch install --yes --download-only --no-install-recommends fdisk=2.38.1-5+deb12u3 gdisk=1.0.9-2.1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { LD_LIBRARY_PATH=$libraries "$(find "$work/unpacked" -path "*bin/$1")" "$2" "$3" 2>remarks; }
disk() { rm -f "$1" && truncate -s 16M "$1" && printf 'label: gpt\nsize=8M\n' |
    LD_LIBRARY_PATH=$libraries "$(find "$work/unpacked" -path "*bin/sfdisk")" -q "$1"; }
disk whole && disk cut && disk overwritten
truncate -s 15M cut
dd if=/dev/zero of=overwritten bs=512 count=1 seek=32767 conv=notrunc status=none
for disk in whole cut overwritten; do
    run sfdisk --verify "$disk" >said && echo "sfdisk $disk: status $?, $(grep -o "No errors detected" said)"
    run sgdisk --verify "$disk" >said && echo "sgdisk $disk: status $?, $(grep -Eo "No problems found|Identified .*" said)"
    run sfdisk --dump "$disk" >said && echo "sfdisk $disk: $(head -n 1 said)"
done | tee seen
cmp seen - <<"SEEN"
sfdisk whole: status 0, No errors detected
sgdisk whole: status 0, No problems found
sfdisk whole: label: gpt
sfdisk cut: status 0, No errors detected
sgdisk cut: status 0, Identified 5 problems!
sfdisk cut: label: dos
sfdisk overwritten: status 0, No errors detected
sgdisk overwritten: status 0, No problems found
sfdisk overwritten: label: gpt
SEEN
