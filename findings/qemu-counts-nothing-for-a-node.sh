#!/bin/sh
# QEMU's query-blockstats counts nothing for a node: whatever was read and written, `query-nodes` has zeros; and an
# export has no statistics at all.
#
# Guess: bytes, operations and times of each node, which is what the schema has for an entry with a `node-name`; or no
# such members where they are not counted.
# Seen on 2026-11-30, qemu-storage-daemon 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3; qemu-system-x86_64 gives its nodes
# zeros as well): an NBD client reads 1 MiB and writes 64 KiB through an export. Each node has rd_bytes, wr_bytes and
# operations of 0; wr_highest_offset, among them, is right. Without query-nodes the list is empty, as it names devices
# alone. A watcher that takes a disk of no operations for an idle one, or for one that hangs, sees one for ever.
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
fetch install --yes --download-only --no-install-recommends qemu-system-common=1:7.2+dfsg-7+deb12u18+b3 qemu-utils=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
head -c 4M /dev/urandom >disk
mkfifo asked
run qemu-storage-daemon --chardev stdio,id=stdio --monitor stdio \
    --blockdev driver=raw,node-name=disk,file.driver=file,file.node-name=file,file.filename=disk \
    --nbd-server addr.type=unix,addr.path=nbd --export nbd,id=export,node-name=disk,writable=on \
    --pidfile ready <asked >said &
exec 3>asked
until [ -s ready ]; do sleep 0.1; done
run qemu-io -f raw -c "read 0 1M" -c "write 1M 64k" -c flush "nbd+unix:///disk?socket=nbd"
cat >&3 <<"COMMANDS"
{"execute": "qmp_capabilities"}
{"execute": "query-blockstats", "arguments": {"query-nodes": true}, "id": "nodes"}
{"execute": "query-blockstats", "id": "devices"}
{"execute": "quit"}
COMMANDS
exec 3>&-
wait
cat >read.py <<"PROGRAM"
import json

for line in open("said"):
    said = json.loads(line)
    if said.get("id") == "devices":
        print("devices:", said["return"])
    if said.get("id") == "nodes":
        for node in sorted(said["return"], key=lambda node: node["node-name"]):
            stats = node["stats"]
            kinds = "rd_bytes", "rd_operations", "wr_bytes", "wr_operations", "wr_highest_offset"
            print(node["node-name"], *(f"{kind}={stats[kind]}" for kind in kinds))
PROGRAM
python3 read.py | tee seen
cmp seen - <<"SEEN"
disk rd_bytes=0 rd_operations=0 wr_bytes=0 wr_operations=0 wr_highest_offset=1114112
file rd_bytes=0 rd_operations=0 wr_bytes=0 wr_operations=0 wr_highest_offset=1114112
devices: []
SEEN
