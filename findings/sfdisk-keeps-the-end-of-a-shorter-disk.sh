#!/bin/sh
# The dump of a disk's partitions by sfdisk, given to a longer disk, leaves it as long as the first one was: "+" and -F
# find no space behind that.
#
# Guess: the table of the longer disk is for the whole of it, so that `sfdisk -d small | sfdisk large` and then
# `echo ", +" | sfdisk -N 2 large` make the last partition larger; how a guest's disk is cloned to a larger one.
# Seen on 2026-11-30, sfdisk 2.38.1, sgdisk 1.0.9, parted 3.5, growpart 0.33 (Debian 12): a dump of GPT has a line
# `last-lba:`, by which the new table ends there, while its second copy is at the disk's real end. sfdisk then says that
# there are 0 bytes of space and, told to take all, ends with 0 and the old end; sgdisk -v finds no problem, and parted
# refuses. The manual says what the line means, and not that a dump carries it over. `sgdisk --load-backup` of the same
# disk and growpart, which removes the line, use the whole.
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
fetch install --yes --download-only --no-install-recommends fdisk=2.38.1-5+deb12u3 \
    gdisk=1.0.9-2.1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/sbin/$program" "$@"; }
truncate -s 64M small
truncate -s 128M by-sfdisk by-sgdisk
printf "label: gpt\n,16M\n,\n" | run sfdisk --quiet small
run sfdisk --dump small | run sfdisk --quiet by-sfdisk
run sgdisk --backup table small >said
run sgdisk --load-backup table by-sgdisk >said
for disk in by-sfdisk by-sgdisk; do
    echo "$disk: $(run sgdisk --print $disk | grep -o "last usable.*")"
    echo "  a second copy of the table in the last sector: $(tail -c 512 $disk | head -c 8)"
    echo "  sgdisk: $(run sgdisk --verify $disk | grep -o "No problems found\. [0-9]* free sectors")"
    echo "  sfdisk: $(run sfdisk --list-free $disk | grep -o ":.* MiB\|: 0 B")"
    status=0
    echo ", +" | run sfdisk --quiet --partno 2 $disk || status=$?
    echo "  status $status, partition 2 has $(run sfdisk --dump $disk | grep -o "34816, size= *[0-9]*" | tr -d " ")"
done | tee seen
cmp seen - <<"SEEN"
by-sfdisk: last usable sector is 131038
  a second copy of the table in the last sector: EFI PART
  sgdisk: No problems found. 2015 free sectors
  sfdisk: : 0 B
  status 0, partition 2 has 34816,size=96223
by-sgdisk: last usable sector is 260096
  a second copy of the table in the last sector: EFI PART
  sgdisk: No problems found. 131073 free sectors
  sfdisk: : 64 MiB
  status 0, partition 2 has 34816,size=225281
SEEN
