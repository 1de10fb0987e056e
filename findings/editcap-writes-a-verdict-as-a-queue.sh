#!/bin/sh
# editcap copies a packet with a verdict into a file that Wireshark's own programs refuse as damaged, and succeeds.
#
# Guess: a copy without any change asked for has the packet's options as they were; or leaves out those that it does not
# know.
# Seen on 2026-11-29, editcap 4.0.17 (Debian 4.0.17-0+deb12u3; 4.4.19 is right): the option epb_verdict (7), which
# capinfos reads without complaint in the original, is written as epb_queue (6) with the verdict's bytes, whose length
# no reader takes, and status 0. With a verdict of two bytes the blocks behind it are out of step too. What a firewall
# in the host says of a guest's packets is such an option; the trace is gone after the first tool that it went through.
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
fetch install --yes --download-only --no-install-recommends wireshark-common=4.0.17-0+deb12u3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
cat >write.py <<"PROGRAM"
import struct


def block(kind, body):
    body += bytes(-len(body) % 4)
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size


def option(code, value):
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4) + bytes(4)


SECTION = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
INTERFACE = block(1, struct.pack("<HHI", 1, 0, 0))
PACKET = struct.pack("<IIIII", 0, 0, 0, 60, 60) + bytes(60)
for name, verdict in (("hardware", b"\x00v"), ("linux", b"\x01" + struct.pack("<Q", 2))):
    with open(name, "wb") as file:
        file.write(SECTION + INTERFACE + block(6, PACKET + option(7, verdict)) + block(6, PACKET))
PROGRAM
python3 write.py
for each in hardware linux; do
    run capinfos -c "$each" | tail -n 1
    run editcap "$each" "$each.copy"
    echo "editcap: status $?"
    if run capinfos -c "$each.copy" >count 2>&1; then echo "the copy is read"; else grep "^(pcapng" count; fi
done | tee seen
cmp seen - <<"SEEN"
Number of packets:   2
editcap: status 0
(pcapng: packet block queue option length 1 is not 4)
Number of packets:   2
editcap: status 0
(pcapng: packet block queue option length 9 is not 4)
SEEN
