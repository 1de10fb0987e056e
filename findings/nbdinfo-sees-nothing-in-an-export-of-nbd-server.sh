#!/bin/sh
# For nbdinfo, and for `qemu-nbd --list`, every export of nbd-server has the size 0 and is empty.
#
# Guess: the size that a client gets, as `nbdinfo --size` says it of the same export.
# Seen on 2026-11-30, nbd-server 3.24 (Debian 1:3.24-1.1), nbdinfo 1.14.2, qemu-nbd 7.2.22: asked for an export's
# description without entering it (NBD_OPT_INFO, which the protocol has answer as NBD_OPT_GO does), the server gives 0
# bytes; on entering, the size of the file. So nbdinfo, --list and --json say 0 and "empty", while nbdinfo --size,
# nbdcopy and qemu-img have the whole disk. A script that waits until a disk is there, or allocates by that size, goes
# wrong.
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
    nbd-server=1:3.24-1.1 libnbd-bin=1.14.2-1 qemu-utils=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }

seq 200000 | head -c 1048576 >disk
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf '[generic]\n  allowlist = true\n  listenaddr = 127.0.0.1\n  port = %s\n[disk]\n  exportname = %s/disk\n' \
    "$port" "$work" >config
LD_LIBRARY_PATH=$libraries unpacked/bin/nbd-server -C "$work/config" -p "$work/pid"
for _ in $(seq 50); do
    [ ! -s pid ] || break
    sleep 0.2
done
trap 'kill "$(cat pid)"; rm -rf "$work"' EXIT
uri=nbd://127.0.0.1:$port/disk
{
    run nbdinfo "$uri" | grep -E "export-size|content" | tr -d "\t"
    run qemu-nbd --list --bind 127.0.0.1 --port "$port" | grep size | tr -s " "
    echo "nbdinfo --size: $(run nbdinfo --size "$uri")"
    echo "nbdcopy: $(run nbdcopy "$uri" - | cmp - disk && echo the file)"
} | tee seen
cmp seen - <<"SEEN"
export-size: 0
content: empty
 size: 0
nbdinfo --size: 1048576
nbdcopy: the file
SEEN
