#!/bin/sh
# What dump-guest-memory of qemu-system-x86_64 writes is for the i386, and of 64 bits, until the guest has come to long
# mode.
#
# Guess: ELF for x86-64, which is the machine's, as its readers (crash, gdb, drgn) are started for that.
# Seen on 2026-11-29, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): a guest that is in its firmware, or in a loader,
# gives an ELF of class 64 with the machine EM_386, which is none of 64 bits. It goes by the mode that the first
# processor is in at that moment, and no option says otherwise: a dump of a guest that does not start is of another kind
# than all others.
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
fetch install --yes --download-only --no-install-recommends qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
qemu() {
    LD_LIBRARY_PATH=$libraries unpacked/usr/bin/qemu-system-x86_64 -L unpacked/usr/share/qemu \
        -L unpacked/usr/share/seabios -L unpacked/usr/lib/ipxe/qemu -nodefaults -display none "$@"
}

for memory in 64M 5G; do
    {
        printf '{"execute": "qmp_capabilities"}\n{"execute": "dump-guest-memory", "arguments": '
        printf '{"paging": false, "protocol": "file:%s/core"}}\n{"execute": "quit"}\n' "$work"
        sleep 5 # as long as its input is open QEMU reads it
    } | qemu -machine pc -m $memory -accel tcg -S -qmp stdio >said
    python3 - $memory <<"PROGRAM"
import struct
import sys

head = open("core", "rb").read(20)
machine = struct.unpack_from("<H", head, 18)[0]
print(sys.argv[1], {1: "32 bits", 2: "64 bits"}[head[4]], {3: "EM_386", 62: "EM_X86_64"}[machine])
PROGRAM
    rm core
done | tee seen
cmp seen - <<"SEEN"
64M 64 bits EM_386
5G 64 bits EM_386
SEEN
