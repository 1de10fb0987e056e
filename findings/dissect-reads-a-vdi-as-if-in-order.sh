#!/bin/sh
# dissect.hypervisor reads a VDI image right block by block, and wrong in one piece: it takes the blocks for neighbours.
#
# Guess: a reader that knows the map of blocks gives the same bytes, however much is asked for at once.
# Seen on 2026-11-29, dissect.hypervisor 3.21 (Python 3.11), qemu-img 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): of an
# image by qemu-img with a hole in it a read of more than a block has what lies behind the hole in its place; of the
# whole it is as much shorter as the holes are. Nothing is raised. Every `qemu-img convert` of a sparse disk makes such
# an image.
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
fetch install --yes --download-only --no-install-recommends qemu-utils=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check dissect.hypervisor==3.21
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }

cat >read.py <<"PROGRAM"
from pathlib import Path

from dissect.hypervisor.disk.vdi import VDI

BLOCK = 1 << 20
original = Path("original").read_bytes()


def names(data):
    return [data[at : at + 1] for at in range(0, len(data), BLOCK)]


disk = VDI(Path("image.vdi")).open()
print("original  ", names(original))
pieces = []
for at in range(0, len(original), BLOCK):
    disk.seek(at)
    pieces.append(disk.read(BLOCK))
print("in blocks ", names(b"".join(pieces)), b"".join(pieces) == original)
disk.seek(0)
print("two blocks", names(disk.read(2 * BLOCK)))
disk.seek(0)
print("at once   ", names(disk.read()))
PROGRAM
python3 -c 'open("original", "wb").write(b"".join(c * (1 << 20) for c in (b"a", bytes(1), b"c", b"d", b"e")))'
run qemu-img convert -f raw -O vdi original image.vdi
run qemu-img compare -q -f raw -F vdi original image.vdi
venv/bin/python read.py | tee seen
cmp seen - <<"SEEN"
original   [b'a', b'\x00', b'c', b'd', b'e']
in blocks  [b'a', b'\x00', b'c', b'd', b'e'] True
two blocks [b'a', b'c']
at once    [b'a', b'c', b'd', b'e']
SEEN
