#!/bin/sh
# libqcow reads every other compressed cluster of an image by qemu-img as zeros, and says nothing.
#
# Guess: a reader of qcow2 that knows its compressed clusters gives their bytes, or an error.
# Seen on 2026-11-29, libqcow-python 20260703 (Python 3.11), qemu-img 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): of an
# image made by `qemu-img convert -c` with zlib, the default, 23 of 46 clusters with data come back as 64 KiB of zeros:
# each second one. A read of the whole and one of each cluster do the same. What tells a lost disk from an empty one is
# then nobody's.
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
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check libqcow-python==20260703
cat >read.py <<"PROGRAM"
import pyqcow

CLUSTER = 65536
original = open("original", "rb").read()
image = pyqcow.file()
image.open("image.qcow2")
clusters = range(0, len(original), CLUSTER)
read = [image.read_buffer_at_offset(CLUSTER, at) for at in clusters]
wrong = [at // CLUSTER for at, found in zip(clusters, read) if found != original[at : at + CLUSTER]]
print("wrong clusters:", wrong)
print("zeros:", all(read[number] == bytes(CLUSTER) for number in wrong))
PROGRAM
venv/bin/python -c 'open("original", "wb").write(b"abc" * 1_000_000 + bytes(5_388_608))'
run qemu-img convert -c -f raw -O qcow2 original image.qcow2
run qemu-img compare -f raw -F qcow2 original image.qcow2
venv/bin/python read.py | tee seen
grep -q "^wrong clusters: \[1, 3, 5, 7, .*45\]$" seen
grep -q "^zeros: True$" seen
