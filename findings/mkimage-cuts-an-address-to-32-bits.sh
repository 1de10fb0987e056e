#!/bin/sh
# mkimage cuts a load address above 4 GiB to its low 32 bits, in a FIT as in an image of the old kind.
#
# Guess: refused for the old kind, whose header has 32 bits; kept in a FIT, whose addresses are cells and may be two.
# Seen on 2026-11-30, mkimage 2023.01 (Debian 2023.01+dfsg-2+deb12u3), arm64: of -a 0x880080000 is left 80080000 in
# both, with status 0 and no word: the kernel is loaded elsewhere. The same address in an .its file with two cells is
# listed whole by the same program.
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
fetch install --yes --download-only --no-install-recommends u-boot-tools=2023.01+dfsg-2+deb12u3 device-tree-compiler=1.6.1-4+b1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
mkimage() { PATH=$PATH:$work/unpacked/usr/bin LD_LIBRARY_PATH=$libraries unpacked/usr/bin/mkimage "$@"; }
head -c 1000 /dev/urandom >kernel
set -- -A arm64 -O linux -T kernel -C none -a 0x880080000 -e 0x880080000 -n kernel -d kernel
cat >two.its <<"SOURCE"
/dts-v1/;
/ {
    description = "two cells";
    images {
        kernel {
            description = "kernel";
            data = /incbin/("kernel");
            type = "kernel";
            arch = "arm64";
            os = "linux";
            compression = "none";
            load = <0x8 0x80080000>;
            entry = <0x8 0x80080000>;
        };
    };
    configurations { default = "only"; only { kernel = "kernel"; }; };
};
SOURCE
{
    mkimage "$@" old >/dev/null 2>remarks && echo "old: status $?, remarks $(grep -ci "address\|truncat" remarks || true)"
    mkimage -f auto "$@" new >/dev/null 2>remarks && echo "FIT: status $?, remarks $(grep -ci "address\|truncat" remarks || true)"
    mkimage -f two.its two >/dev/null
    for image in old new two; do mkimage -l $image | grep -E "Load Address|Entry Point" | tr -s " " | sed "s/^/$image:/"; done
} | tee seen
cmp seen - <<"SEEN"
old: status 0, remarks 0
FIT: status 0, remarks 0
old:Load Address: 80080000
old:Entry Point: 80080000
new: Load Address: 0x80080000
new: Entry Point: 0x80080000
two: Load Address: 0x880080000
two: Entry Point: 0x880080000
SEEN
