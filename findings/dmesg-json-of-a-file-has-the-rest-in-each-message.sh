#!/bin/sh
# In the JSON that `dmesg -F FILE -J` makes, each message has all lines of the file behind it.
#
# Guess: the message, up to the end of its line, as plain dmesg prints it of the same file.
# Seen on 2026-11-30, dmesg of util-linux 2.38.1 (Debian 2.38.1-5+deb12u3): `msg` runs on to the end of the file, with
# the priorities and times of the lines to come in it, so that a log of n lines has n * n / 2 of them in JSON, and a
# search for an error finds it in every message before it.
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
fetch install --yes --download-only --no-install-recommends util-linux=2.38.1-5+deb12u3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/bin/$program" "$@"; }

cat >log <<"LOG"
<6>[    0.000000] Linux version 6.1.0
<6>[    1.000000] virtio0: [vda] 2048 blocks
<3>[    2.000000] Buffer I/O error on dev vda
LOG
run dmesg -F log
run dmesg -F log -J >log.json
python3 -c '
import json
for record in json.load(open("log.json"))["dmesg"]:
    print(repr(record["msg"]))' | tee seen
cmp seen - <<"SEEN"
'Linux version 6.1.0\n<6>[    1.000000] virtio0: [vda] 2048 blocks\n<3>[    2.000000] Buffer I/O error on dev vda\n'
'virtio0: [vda] 2048 blocks\n<3>[    2.000000] Buffer I/O error on dev vda\n'
'Buffer I/O error on dev vda\n'
SEEN
