#!/bin/sh
# QEMU's query-pci has BARs at address -1, and `info pci` shows them at 0xffffffffffffffff with an end that is odd and
# below.
#
# Guess: a BAR that is not placed has no `address`, or 0; one that is looked for by its address is not there.
# Seen on 2026-11-29, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): before the firmware has run `address` is -1, though
# `size` is right; HMP prints the range from 0xffffffffffffffff to 0x3e for 64 ports. Who adds size - 1 to address has a
# range that ends in the first page. A change of what HMP prints has been proposed upstream; the schema of query-pci
# says of no such value.
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

ask() {
    {
        printf '{"execute": "qmp_capabilities"}\n'
        cat
        printf '{"execute": "quit"}\n'
        sleep 5 # as long as its input is open QEMU reads it
    } | qemu -machine pc -accel tcg -S -qmp stdio -device e1000,romfile= | tr -d "\r"
}
ask <<"COMMANDS" >said
{"execute": "query-pci"}
{"execute": "human-monitor-command", "arguments": {"command-line": "info pci"}}
COMMANDS
{
    grep -Eo '"bar": 1, "size": 64, "address": [-0-9]*' said
    grep -Eo 'BAR1: I/O at [^.]*' said
} | tee seen
cmp seen - <<"SEEN"
"bar": 1, "size": 64, "address": -1
BAR1: I/O at 0xffffffffffffffff [0x003e]
SEEN
