#!/bin/sh
# QEMU's capture of a USB device keeps 256 bytes of each transfer: of a sector that a disk is asked for, the first half.
#
# Guess: all of it, as the guest saw it: the documentation says that these files are as usbmon's, and names no limit;
# that of filter-dump, for the network, keeps 64 KiB, and has an option for it.
# Seen on 2026-11-29, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3), tshark 4.0.17: SeaBIOS reads a sector of a
# usb-storage, and the frame is 576 bytes long, of which 320 are in the file, 64 of them its header. No option changes
# it.
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
    qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 tshark=4.0.17-0+deb12u3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
qemu() {
    LD_LIBRARY_PATH=$libraries unpacked/usr/bin/qemu-system-x86_64 -L unpacked/usr/share/qemu \
        -L unpacked/usr/share/seabios -L unpacked/usr/lib/ipxe/qemu -nodefaults -display none "$@"
}

truncate -s 1M disk
: >usb.pcap
{
    printf '{"execute": "qmp_capabilities"}\n'
    for _ in $(seq 240); do
        [ "$(stat -c %s usb.pcap)" -le 4000 ] || break
        sleep 0.5
    done
    printf '{"execute": "quit"}\n'
    sleep 2
} | qemu -machine pc -accel tcg -qmp stdio -device qemu-xhci \
    -drive if=none,id=disk,format=raw,file=disk -device usb-storage,drive=disk,pcap=usb.pcap >said
LD_LIBRARY_PATH=$libraries unpacked/usr/bin/tshark -r usb.pcap -T fields -e frame.len -e frame.cap_len 2>errors >frames
awk '$1 != $2 {print $1 " bytes, of which there are " $2}' frames | sort -u | tee seen
[ "$(cat seen)" = "576 bytes, of which there are 320" ]
[ "$(awk '{print $2}' frames | sort -n | tail -n 1)" = 320 ]
