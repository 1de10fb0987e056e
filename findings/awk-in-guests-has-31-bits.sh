#!/bin/sh
# In the awks of small guests `printf "%d"` ends at 2 GiB: one gives the largest number of 31 bits, the other the
# smallest.
#
# Guess: numbers of awk are doubles, and whole ones are right up to 2^53.
# Seen on 2026-11-29, of 4294967296: mawk 1.3.4 (Debian 1.3.4.20200120-3.1, its usual awk) gives 2147483647, busybox
# 1.35.0 (Debian 1:1.35.0-4+deb12u1+b1) -2147483648, gawk 5.2.1 the number. Nobody says anything. Who sums up bytes, or
# prints addresses, in a guest measures 2 GiB for whatever is more.
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
fetch install --yes --download-only --no-install-recommends busybox-static=1:1.35.0-4+deb12u1+b1 mawk gawk
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$(find "$work/unpacked" -name "$program" -path "*bin/*" | head -n 1)" "$@"; }
{
    echo "gawk: $(run gawk 'BEGIN { printf "%d", 4294967296 }')"
    echo "mawk: $(run mawk 'BEGIN { printf "%d", 4294967296 }')"
    echo "busybox: $(run busybox awk 'BEGIN { printf "%d", 4294967296 }')"
} | tee seen
[ "$(cut -d " " -f 2- seen | tr "\n" " ")" = "4294967296 2147483647 -2147483648 " ]
