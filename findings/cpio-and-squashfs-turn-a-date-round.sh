#!/bin/sh
# GNU cpio's newc archives and squashfs images have a file of 1960 as of 2096 and one of 2110 as of 1974, without a
# word.
#
# Guess: the nearest date that 32 bits without a sign have (1970, 2106), or a word: cpio itself leaves a file of 1960
# out of a ustar archive with an error.
# Seen on 2026-11-30, cpio 2.13 (Debian 2.13+dfsg-7.1), squashfs-tools 4.5.1 (1:4.5.1-1), bsdtar 3.6.2
# (libarchive-tools 3.6.2-1+deb12u5): cpio and mksquashfs cut the seconds to their lower 32 bits, with status 0;
# bsdtar stops at 2106, for the one of 1960 too. A clock that is not set (a guest without one, a file with a time of
# -1) is enough for it. Neither manual says so; squashfs-tools issue 315 is of a tar with such a date, which is
# refused.
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
    cpio=2.13+dfsg-7.1 squashfs-tools=1:4.5.1-1 libarchive-tools=3.6.2-1+deb12u5
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
tool() {
    LD_LIBRARY_PATH=$libraries "$work/unpacked/$@"
}

export TZ=UTC0
mkdir folder
for year in 1960 2020 2110; do touch -d "$year-06-01 12:00" folder/$year; done
(cd folder && printf "1960\n2020\n2110\n" | tool bin/cpio --quiet -o -H newc >../cpio.newc)
tool usr/bin/bsdtar --format newc -cf bsdtar.newc -C folder 1960 2020 2110
tool usr/bin/mksquashfs folder squashfs -quiet -no-progress
for name in cpio bsdtar; do
    echo $name.newc: $(tool bin/cpio --quiet -itv <$name.newc | sed "s/.* \([0-9]*\) \([0-9]*\)$/\2: \1/")
done | tee seen
tool usr/bin/unsquashfs -lls squashfs | sed -n "s/.* \([0-9]*\)-..-.. .*root.\([0-9]*\)$/\2: \1/p" >years
echo squashfs: $(cat years) | tee -a seen
cmp seen - <<"SEEN"
cpio.newc: 1960: 2096 2020: 2020 2110: 1974
bsdtar.newc: 1960: 2106 2020: 2020 2110: 2106
squashfs: 1960: 2096 2020: 2020 2110: 1974
SEEN
