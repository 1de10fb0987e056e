#!/bin/sh
# The same object makes a PCI device 02.0 on QEMU's command line and 16.0 in its monitor, where `addr` is a number.
#
# Guess: {"addr": 16} is slot 16 at both doors, or an error; whatever it is, the same at both.
# Seen on 2026-11-29, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3), machine pc: `-device` takes the number for device and
# function together (16 is 02.0), QMP's device_add for the text "16", which is hexadecimal (16.0, decimal 22); neither says a
# word. QEMU 11.1.3 has 02.0 at both.
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
fetch install --yes --download-only --no-install-recommends qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
# What QEMU answers to these commands, in their order; it ends by the last.
ask() {
    {
        printf '{"execute": "qmp_capabilities"}\n'
        cat
        printf '{"execute": "quit"}\n'
        sleep 5 # as long as its input is open QEMU reads it
    } | env LD_LIBRARY_PATH="$libraries" unpacked/usr/bin/qemu-system-x86_64 -L unpacked/usr/share/qemu \
        -L unpacked/usr/share/seabios -machine pc -accel tcg -S -nodefaults -display none -qmp stdio \
        -device '{"driver": "virtio-rng-pci", "id": "line", "addr": 16}' | tr -d "\r"
}
ask <<"COMMANDS" >said
{"execute": "device_add", "arguments": {"driver": "virtio-rng-pci", "id": "monitor", "addr": 16}}
{"execute": "query-pci", "id": "asked"}
COMMANDS
python3 - <<"PROGRAM" | tee seen
import json

for line in open("said"):
    said = json.loads(line)
    if said.get("id") == "asked":
        for device in said["return"][0]["devices"]:
            if device["qdev_id"]:
                print(device["qdev_id"], "slot", device["slot"], "function", device["function"])
PROGRAM
[ "$(sort seen | tr "\n" ",")" = "line slot 2 function 0,monitor slot 22 function 0," ]
