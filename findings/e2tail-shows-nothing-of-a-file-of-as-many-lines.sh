#!/bin/sh
# e2tail of e2tools shows nothing of a file that has just as many lines as are asked for; of one without a last newline it
# shows a line too many.
#
# Guess: the last lines, as tail shows them: all, when the file has no more.
# Seen on 2026-11-30, e2tools 0.1.0 (Debian 0.1.0-3): of a log of 10 lines `e2tail -n 10 IMAGE:/log` shows 0 bytes, of 9 all 9,
# of 11 the last 10, each with status 0. Of one whose last line has no end (a guest that was stopped) it counts newlines
# only: -n 1 shows two lines, and of ten newlines nothing again. Who looks for the panic in the log of a guest that died
# early sees an empty log.
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
fetch install --yes --download-only --no-install-recommends e2tools=0.1.0-3 e2fsprogs=1.47.0-2+b2
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "unpacked/$program" "$@"; }
truncate -s 8M image
run sbin/mke2fs -q -t ext4 image
for lines in 9 10 11; do
    seq $lines >whole.$lines
    { seq $lines && printf "last, without an end"; } >open.$lines
    run usr/bin/e2cp whole.$lines open.$lines image:/
done
lines() { awk 'END { print NR }'; }
{
    for kind in whole open; do
        for lines in 9 10 11; do
            echo "$kind.$lines: $(run usr/bin/e2tail -n 10 image:/$kind.$lines | lines) lines, tail $(tail -n 10 $kind.$lines | lines)"
        done
    done
    echo "open.9, one: $(run usr/bin/e2tail -n 1 image:/open.9 | lines) lines, tail $(tail -n 1 open.9 | lines)"
} | tee seen
cmp seen - <<"SEEN"
whole.9: 9 lines, tail 9
whole.10: 0 lines, tail 10
whole.11: 10 lines, tail 10
open.9: 10 lines, tail 10
open.10: 0 lines, tail 10
open.11: 11 lines, tail 10
open.9, one: 2 lines, tail 1
SEEN
