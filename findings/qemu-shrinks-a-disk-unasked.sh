#!/bin/sh
# QMP's block_resize cuts the end of a raw disk off, and its data, without being asked twice; qemu-img refuses that.
#
# Guess: what `qemu-img resize` wants --shrink for, since data is lost ("the image will be shrunk"), a running QEMU does
# not do with less.
# Seen on 2026-11-29, QEMU and qemu-img 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): block_resize with a size of 4096
# answers {}, without a warning or an event, and the file of 1 MiB has 4096 bytes; qemu-img with the same size ends with
# status 1 and leaves the file as it was. A unit that was confused (MiB for bytes) is enough.
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
fetch install --yes --download-only --no-install-recommends qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 qemu-utils=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
head -c 1M /dev/urandom >image
status=0
run qemu-img resize -f raw image 4096 || status=$?
echo "qemu-img: status $status, $(stat -c %s image) bytes"
[ "$status $(stat -c %s image)" = "1 1048576" ]
cat >commands <<"COMMANDS"
{"execute": "qmp_capabilities"}
{"execute": "blockdev-add", "arguments": {"driver": "raw", "node-name": "disk", "file": {"driver": "file", "filename": "image"}}}
{"execute": "block_resize", "arguments": {"node-name": "disk", "size": 4096}}
{"execute": "quit"}
COMMANDS
run qemu-system-x86_64 -L unpacked/usr/share/qemu -L unpacked/usr/share/seabios -accel tcg -S -nodefaults \
    -display none -qmp stdio <commands | tee said
echo "block_resize: $(stat -c %s image) bytes"
if grep -q error said; then exit 1; fi
[ "$(stat -c %s image)" = 4096 ]
