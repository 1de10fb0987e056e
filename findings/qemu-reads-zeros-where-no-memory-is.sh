#!/bin/sh
# On a PC of QEMU an address at which nothing is reads as zeros, and an I/O port at which nothing is as ones.
#
# Guess: ones in both cases, which is what a PCI read that nobody answers gives, and what drivers look for to tell a
# device that is gone (a register that reads 0xffffffff).
# Seen on 2026-11-28, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3), machine q35: readl 0x80000000 is 0, a write there
# is taken without a word, inl 0x1234 is 0xffffffff, and so is the configuration of a PCI function that is not there.
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
{
    printf "%s\n" "readl 0x80000000" "writel 0x80000000 1" "inl 0x1234" "outl 0xcf8 0x80002000" "inl 0xcfc"
    sleep 5 # QEMU answers what it has read, and ends when there is no more
} | exec env LD_LIBRARY_PATH="$libraries" unpacked/usr/bin/qemu-system-x86_64 -L unpacked/usr/share/qemu \
    -L unpacked/usr/share/seabios -machine q35 -accel tcg -S -nodefaults -display none -qtest stdio -qtest-log none \
    2>/dev/null >said & qemu=$! # of QEMU itself: a function in its place would be a shell that leaves it behind
for second in 1 2 3 4 5 6 7 8 9 10; do [ "$(grep -c OK said)" = 5 ] || sleep 1; done
kill "$qemu" 2>/dev/null || true
wait "$qemu" || true
cat said
[ "$(tr "\n" " " <said)" = "OK 0x0000000000000000 OK OK 0xffffffff OK OK 0xffffffff " ]
