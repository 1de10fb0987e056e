#!/bin/sh
# For busybox's awk a field "010" is 8 and a field "0x10" is 16: fields are read as numbers of C are.
#
# Guess: input is decimal, as POSIX says of awk, and as gawk and mawk have it; a counter with leading zeros is what it
# looks like.
# Seen on 2026-11-29, busybox 1.35.0 (Debian 1:1.35.0-4+deb12u1+b1): a line "010 0x10 09 1e3" sums up as 8, 16, 9 and
# 1000; gawk 5.2.1 has 10, 0, 9 and 1000. A timestamp's "010" milliseconds are 8, and its "011" are 9, and "009" is 9
# too.
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
fetch install --yes --download-only --no-install-recommends busybox-static=1:1.35.0-4+deb12u1+b1 gawk
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$(find "$work/unpacked" -name "$program" -path "*bin/*" | head -n 1)" "$@"; }
for awk in "busybox awk" gawk; do
    # shellcheck disable=SC2086  # a program, and its applet
    echo "$awk: $(echo "010 0x10 09 1e3" | run $awk '{ print $1 + 0, $2 + 0, $3 + 0, $4 + 0 }')"
done | tee seen
grep -q "^busybox awk: 8 16 9 1000$" seen
grep -q "^gawk: 10 0 9 1000$" seen
