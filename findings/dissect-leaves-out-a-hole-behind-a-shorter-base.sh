#!/bin/sh
# A disk of 1 MiB over a base of 500 KiB is read by dissect.hypervisor with a hole left out: what was written behind
# the end of the base is in another place.
#
# Guess: zeros behind the end of the base, as QEMU gives; a disk over a smaller base is what each growth of a cloud
# image makes. Or an error.
# Seen on 2026-11-30, dissect.hypervisor 3.21 (Python 3.11), images made by qemu-img 7.2 (Debian
# 1:7.2+dfsg-7+deb12u18+b3): of a disk of 1,048,576 bytes read() gives 577,536 without an error: the 512,000 of the
# base and right behind them the 65,536 that were written at 983,040. A seek to these reads them rightly; a read
# between is empty, as Python's files are at their end only. Not in the issues found by a search; cloud-hypervisor
# mended its own kin of it (7678).
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
venv/bin/pip install --quiet --disable-pip-version-check dissect.hypervisor==3.21
tool() {
    LD_LIBRARY_PATH=$libraries "$work/unpacked/$@"
}

tr "\0" B </dev/zero | head --bytes 512000 >base.raw
tool usr/bin/qemu-img convert -f raw -O qcow2 base.raw base.qcow2
tool usr/bin/qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2 1M
tool usr/bin/qemu-io -c "write -P 0x43 960k 64k" over.qcow2 >/dev/null
tool usr/bin/qemu-img convert -O raw over.qcow2 over.raw
cat >read.py <<"PROGRAM"
import pathlib

from dissect.hypervisor.disk.qcow2 import QCow2

for name, file in ("qemu-img", open("over.raw", "rb")), ("dissect", QCow2(pathlib.Path("over.qcow2")).open()):
    size, whole = file.seek(0, 2), (file.seek(0), file.read())[1]
    pieces = [(file.seek(at), len(file.read(512)))[1] for at in (0, 700_000, 1_000_000)]
    print(name, "size", size, "read", len(whole), "written at", whole.find(b"C"), pieces)
PROGRAM
venv/bin/python read.py | tee seen
cmp seen - <<"SEEN"
qemu-img size 1048576 read 1048576 written at 983040 [512, 512, 512]
dissect size 1048576 read 577536 written at 512000 [512, 0, 512]
SEEN
