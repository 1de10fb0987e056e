#!/bin/sh
# In an expression of a device tree's source -1 is not below 0 for dtc, and 7 divided by -2 is 0.
#
# Guess: as in C, whose operators these are: dtc takes -1 as a cell, as ffffffff, and -1 < 0 is true. dtlib, Zephyr's
# reader of the same sources, has it so.
# Seen on 2026-11-29, dtc 1.6.1 (Debian 1.6.1-4+b1), devicetree 0.0.2 (Python 3.11): dtc calculates with 64 bits without
# a sign, so that (-1 < 0) is 0, (-1 > 1) is 1, and (7 / -2) is 0, where C has -3 and dtlib -4. Its description of the
# format says of neither. (-7 / 2) it refuses: that is out of the range of a cell.
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
fetch install --yes --download-only --no-install-recommends device-tree-compiler=1.6.1-4+b1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check devicetree==0.0.2
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }

cat >source.dts <<"SOURCE"
/dts-v1/;
/ { value = <(-1) (-1 < 0) (-1 > 1) (7 / -2) (-7 % 3)>; };
SOURCE
{
    echo "dtc   $(run dtc -I dts -O dts source.dts | grep -o "<.*>")"
    venv/bin/python -c '
from devicetree import dtlib
print("dtlib", *(f"{number:#x}" for number in dtlib.DT("source.dts").root.props["value"].to_nums()))'
} | tee seen
cmp seen - <<"SEEN"
dtc   <0xffffffff 0x00 0x01 0x00 0x00>
dtlib 0xffffffff 0x1 0x0 0xfffffffc 0x2
SEEN
