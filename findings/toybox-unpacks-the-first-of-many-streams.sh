#!/bin/sh
# toybox's bunzip2 unpacks the first stream of a bzip2 file and succeeds: of what pbzip2 has packed the rest is lost.
#
# Guess: all streams, one behind the other, as bzip2, busybox and Python's bz2 have it ("bunzip2 will correctly
# decompress a file which is the concatenation of two or more compressed files"), and as toybox's own gunzip does; or
# an error about what is left.
# Seen on 2026-11-30, toybox 0.8.9 (Debian 0.8.9+dfsg-1), pbzip2 1.1.13 (1.1.13-1), which makes a stream of each 900 kB
# so that the cores share the work: of 2,288,895 bytes toybox gives 900,000, with status 0 and no word. Of a file below
# that size it gives all, so that a test with a small one passes.
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
fetch install --yes --download-only --no-install-recommends toybox=0.8.9+dfsg-1 pbzip2=1.1.13-1 bzip2=1.0.8-5+b1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/$program" "$@"; }
seq -f "line %.0f" 200000 >log
head -c 100000 log >short
run usr/bin/pbzip2 --keep --quiet log short
{
    for tool in "toybox bunzip2" "toybox bzcat" bzip2; do
        for file in short log; do
            status=0
            case $tool in
            bzip2) run bin/bzip2 --decompress --stdout $file.bz2 >made || status=$? ;;
            *) run bin/toybox "${tool#* }" <$file.bz2 >made || status=$? ;;
            esac
            echo "$tool of $file: status $status, $(stat -c %s made) of $(stat -c %s $file) bytes"
        done
    done
    (gzip --stdout log && gzip --stdout short) >both.gz
    run bin/toybox gunzip <both.gz | wc --bytes
} | tee seen
cmp seen - <<"SEEN"
toybox bunzip2 of short: status 0, 100000 of 100000 bytes
toybox bunzip2 of log: status 0, 900000 of 2288895 bytes
toybox bzcat of short: status 0, 100000 of 100000 bytes
toybox bzcat of log: status 0, 900000 of 2288895 bytes
bzip2 of short: status 0, 100000 of 100000 bytes
bzip2 of log: status 0, 2288895 of 2288895 bytes
2388895
SEEN
