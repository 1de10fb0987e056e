#!/bin/sh
# debugfs sets the time of a file to the day after the one that it was told, for each date in 1960 and for others
# before 1970, and shows it so.
#
# Guess: the date that was told: its own stat shows such dates rightly, and mke2fs -d writes them so.
# Seen on 2026-11-30, e2fsprogs 1.47.0 (Debian 1.47.0-2+b2): set_inode_field with a date (YYYYMMDDHHMMSS) is a day
# late in the leap years before 1970 and in some of the first years of the century, and right in 1961, 1969 and from
# 1970 to 2446, in leap years too. No word of it in debugfs(8), and nothing found in a search of the issues of
# tytso/e2fsprogs (253 is of the zone of such a date).
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
    e2fsprogs=1.47.0-2+b2
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
tool() {
    LD_LIBRARY_PATH=$libraries "$work/unpacked/$@"
}

export TZ=UTC0
echo bytes >file
truncate --size 8M image
tool sbin/mke2fs -q -t ext4 -I 256 image
tool sbin/debugfs -w -R "write file file" image >/dev/null 2>&1
for day in 19020301 19600101 19600601 19610601 19680601 19691231 19700101 19720601 20000229 20400601 24460101; do
    tool sbin/debugfs -w -R "set_inode_field file mtime ${day}120000" image 2>/dev/null
    echo "$day $(tool sbin/debugfs -R "stat file" image 2>/dev/null | sed -n "s/ *mtime: .* -- ... //p")"
done | tee seen
cmp seen - <<"SEEN"
19020301 Mar  2 12:00:00 1902
19600101 Jan  2 12:00:00 1960
19600601 Jun  2 12:00:00 1960
19610601 Jun  1 12:00:00 1961
19680601 Jun  2 12:00:00 1968
19691231 Dec 31 12:00:00 1969
19700101 Jan  1 12:00:00 1970
19720601 Jun  1 12:00:00 1972
20000229 Feb 29 12:00:00 2000
20400601 Jun  1 12:00:00 2040
24460101 Jan  1 12:00:00 2446
SEEN
