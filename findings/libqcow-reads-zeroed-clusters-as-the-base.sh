#!/bin/sh
# libqcow gives the bytes of the backing file where a qcow2 image says that there are zeros now.
#
# Guess: zeros, as QEMU and dissect.hypervisor read them: bit 0 of an L2 entry ("all zeroes") is in version 3 of the
# format since 2012, and other features that libqcow does not know it refuses by name ("unsupported incompatible
# features flags").
# Seen on 2026-11-30, libqcow-python 20260703 (Python 3.11), images made by qemu-img and qemu-io 7.2 (Debian
# 1:7.2+dfsg-7+deb12u18+b3): what a guest wrote over a base is right, what it zeroed or discarded over the base is the
# base's old data, without an error. Of an image without a backing file it gives zeros, so that a test with such an
# image passes. Not in the issues of libyal/libqcow that a search gave; other projects mended the same
# (lima-vm/go-qcow2reader 40, cloud-hypervisor 7627).
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
    qemu-utils=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check libqcow-python==20260703 dissect.hypervisor==3.21
tool() {
    LD_LIBRARY_PATH=$libraries "$work/unpacked/$@"
}

tr "\0" B </dev/zero | head --bytes 262144 >base.raw
tool usr/bin/qemu-img convert -f raw -O qcow2 base.raw base.qcow2
tool usr/bin/qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2
tool usr/bin/qemu-io -c "write -z 0 64k" -c "write -P 0x43 64k 64k" -c "write -z -u 128k 64k" over.qcow2 >/dev/null
tool usr/bin/qemu-img convert -O raw over.qcow2 over.raw
cat >read.py <<"PROGRAM"
import pathlib

import pyqcow
from dissect.hypervisor.disk.qcow2 import QCow2

over, base = pyqcow.file(), pyqcow.file()
over.open("over.qcow2")
base.open("base.qcow2")
over.set_parent(base)
seen = {
    "qemu-img": pathlib.Path("over.raw").read_bytes(),
    "dissect": QCow2(pathlib.Path("over.qcow2")).open().read(),
    "libqcow": over.read_buffer(over.get_media_size()),
}
for name, whole in seen.items():
    clusters = [whole[at : at + 65536] for at in range(0, 262144, 65536)]
    print(name, len(whole), *(bytes(sorted(set(cluster))) for cluster in clusters))
PROGRAM
venv/bin/python read.py | tee seen
cmp seen - <<"SEEN"
qemu-img 262144 b'\x00' b'C' b'\x00' b'B'
dissect 262144 b'\x00' b'C' b'\x00' b'B'
libqcow 262144 b'B' b'C' b'B' b'B'
SEEN
