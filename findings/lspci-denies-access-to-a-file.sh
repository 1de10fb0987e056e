#!/bin/sh
# lspci says "<access denied>" of the capabilities in a file that it has read whole, to root too.
#
# Guess: of a dump that ends before the capabilities it says that they are not in it.
# Seen on 2026-11-28, lspci 3.9.0 (Debian 1:3.9.0-4): for a hex dump of the 64 bytes that `lspci -x` prints, whose
# capability pointer leads behind them, `lspci -F` prints "Capabilities: <access denied>". Nothing was denied; who looks
# for the permission that is missing looks in vain (`lspci -xxx` as root makes a dump that has them).
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
fetch install --yes --download-only --no-install-recommends pciutils=1:3.9.0-4
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
cat >dump <<"DUMP"
00:03.0 Class 00ff: 1b36:0010
00: 36 1b 10 00 06 00 10 00 02 02 08 01 00 00 00 00
10: 00 00 00 fe 00 00 00 00 00 00 00 00 00 00 00 00
20: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
30: 00 00 00 00 40 00 00 00 00 00 00 00 00 01 00 00
DUMP
run lspci -F dump -n -vv 2>/dev/null | tee said
id -u
grep -q "Capabilities: <access denied>" said
