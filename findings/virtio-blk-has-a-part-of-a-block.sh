#!/bin/sh
# A virtio-blk of QEMU with blocks of 4,096 bytes has a capacity of nine sectors where its image has nine: a block and
# an eighth.
#
# Guess: an error at the start, or a capacity in whole blocks; blk_size is "the block size" that a driver is to use, and
# an image of 512 byte sectors is asked for by anyone who tries 4K disks on an old one.
# Seen on 2026-11-29, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): logical_block_size=4096 with an image of 4,608
# bytes starts without a word, and the device's configuration has capacity 9 (of 512) beside blk_size 4096. What is
# behind the last whole block can be asked for by no request of whole blocks.
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
truncate -s 4608 image
{
    # Through the registers of a PCI bus: BAR 0 to 0xc000, its decoding on; then fields of the device's configuration.
    echo "outl 0xcf8 0x80002010" && echo "outl 0xcfc 0xc000"
    echo "outl 0xcf8 0x80002004" && echo "outw 0xcfc 1"
    echo "inl 0xc014" && echo "inl 0xc028"
    sleep 8
} | timeout 10 sh -c 'exec "$@"' - env LD_LIBRARY_PATH="$libraries" unpacked/usr/bin/qemu-system-x86_64 \
    -L unpacked/usr/share/qemu -L unpacked/usr/share/seabios -machine pc -accel tcg -S -nodefaults -display none \
    -blockdev raw,node-name=disk,file.driver=file,file.filename=image -qtest stdio -qtest-log none \
    -device virtio-blk-pci,drive=disk,addr=4,disable-modern=on,logical_block_size=4096,physical_block_size=4096 >said || true
grep "OK 0x" said | tr -d "\r" | tee seen
cmp seen - <<"SEEN"
OK 0x0009
OK 0x1000
SEEN
