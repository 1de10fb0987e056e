#!/bin/sh
# mcopy -m gives a file of 1970 the date 2098 on a FAT disk, and one of 2110 the date 1982.
#
# Guess: the nearest date that FAT has, 1980 or 2107, or a word. A date of 1970 is no rare one: reproducible builds
# and package stores give all their files the time 0 or 1.
# Seen on 2026-11-30, mtools 4.0.32 (Debian 4.0.33-1+really4.0.32-1), 7-Zip 26.02 as another reader: the years since
# 1980 are cut to 7 bits, status 0 and no word. Programs that compare dates (make, rsync -u, an update that takes the
# newer file) then have it for the newest of all. mcopy(1) says of -m that it preserves the time. Not in the issues
# found by a search, in which systemd/systemd 43545 avoids -m for another reason.
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
    mtools=4.0.33-1+really4.0.32-1 dosfstools=4.2-1 p7zip-full=16.02+really26.02+dfsg-0+deb12u1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
tool() {
    LD_LIBRARY_PATH=$libraries "$work/unpacked/$@"
}

export TZ=UTC0
truncate --size 4M image
tool usr/sbin/mkfs.fat image >/dev/null 2>&1 || tool sbin/mkfs.fat image >/dev/null
for year in 1970 1979 1980 2026 2107 2110; do
    touch -d "$year-06-01 12:00" $year
    tool usr/bin/mcopy -m -i image $year ::
done
tool usr/lib/p7zip/7z l image | sed -n "s/^\(....-..-..\) .* \([0-9]*\)$/\2: \1/p" | grep -- "-06-01" | tee seen
cmp seen - <<"SEEN"
1970: 2098-06-01
1979: 2107-06-01
1980: 1980-06-01
2026: 2026-06-01
2107: 2107-06-01
2110: 1982-06-01
SEEN
