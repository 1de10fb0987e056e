#!/bin/sh
# nbdkit's plugin `data` reads "08" as two bytes, 0 and 8, and "010" as one, so that what is written in columns shifts.
#
# Guess: an error, as for 256: a byte with a 0 in front is octal (nbdkit-data-plugin(1)), and no octal number has an 8.
# Seen on 2026-11-29, nbdkit 1.32.5 (Debian 1.32.5-1): a byte ends where its number does, without a space. "07 08 09 10"
# are six bytes, and everything behind them, an offset by @+N too, is two further on.
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
fetch install --yes --download-only --no-install-recommends nbdkit=1.32.5-1 libnbd-bin=1.14.2-1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }

plugin=$(find "$work/unpacked" -name "nbdkit-data-plugin.so")
export copy="$work/unpacked/usr/bin/nbdcopy"
for data in "7 8 9 10" "07 08 09 10" "010" "10 20 @+2 30" "08 09 @+2 30"; do
    # shellcheck disable=SC2016 # nbdkit's shell is to put them in
    run nbdkit -U - "$plugin" data="$data" --run 'LD_LIBRARY_PATH='"$libraries"' "$copy" "$uri" out'
    echo "$data: $(od -An -tu1 out | tr -s " ")"
    rm out
done | tee seen
cmp seen - <<"SEEN"
7 8 9 10:  7 8 9 10
07 08 09 10:  7 0 8 0 9 10
010:  8
10 20 @+2 30:  10 20 0 0 30
08 09 @+2 30:  0 8 0 9 0 0 30
SEEN
