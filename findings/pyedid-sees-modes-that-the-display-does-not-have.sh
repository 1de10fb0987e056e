#!/bin/sh
# pyedid gives a display modes that it does not have, and its product number with the bytes the wrong way round.
#
# Guess: of an EDID that edid-decode finds conforming, what edid-decode says.
# Seen on 2026-11-30, pyedid 1.0.3 (Python 3.11), edid-decode of 2022 (Debian 0.1~git20220315.cb74358c2896-1): three
# established timings are set (640x480, 800x600 and 1024x768, at 60 Hz); pyedid has eight, without 640x480 and with an
# interlaced one. The product is 4660 there, 13330 here, whose bytes are turned. Standby, suspend and off are true for
# a display that has none of them. An EDID of QEMU's cards has such fields too.
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
fetch install --yes --download-only --no-install-recommends edid-decode=0.1~git20220315.cb74358c2896-1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pyedid==1.0.3
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }

cat >make.py <<"PROGRAM"
edid = bytearray(128)
edid[0:8] = bytes.fromhex("00ffffffffffff00")
edid[8:18] = bytes.fromhex("5274 3412 63000000 ff21")  # TST, product 0x1234, serial number 99, model of 2023
edid[18:25] = bytes.fromhex("0104 a5 341d 78 06")  # EDID 1.4, DisplayPort, 52 cm x 29 cm, no standby, suspend or off
edid[25:35] = bytes.fromhex("ee91a3544c99260f5054")  # sRGB's colours
edid[35:38] = bytes.fromhex("210800")  # 640x480, 800x600 and 1024x768, at 60 Hz each
edid[38:54] = bytes.fromhex("d1c081c0") + b"\x01" * 12  # 1920x1080 and 1280x720
edid[54:72] = bytes.fromhex("023a801871382d40582c450009252100001e")  # 1920x1080 at 60 Hz, its own
edid[72:90] = b"\0\0\0\xfc\0" + b"Test\n".ljust(13)
edid[90:108] = b"\0\0\0\xff\0" + b"SN0001\n".ljust(13)
edid[108:126] = b"\0\0\0\xfd\0" + bytes((48, 75, 30, 83, 17, 1, 10)) + b" " * 6
edid[127] = -sum(edid) % 256
open("edid", "wb").write(edid)
PROGRAM
python3 make.py
cat >read.py <<"PROGRAM"
import pyedid

edid = pyedid.parse_edid(open("edid", "rb").read())
print("product", edid.product_id, "standby", edid.dpms_standby, edid.dpms_suspend, edid.dpms_activeoff)
print(*(f"{width}x{height}@{rate:.0f}" for width, height, rate in edid.resolutions))
PROGRAM
run edid-decode --check edid >said
grep -E "Model:|DMT|conformity" said
grep -q "EDID conformity: PASS" said
venv/bin/python read.py | tee seen
cmp seen - <<"SEEN"
product 13330 standby True True True
800x600@60 800x600@70 800x600@75 832x624@75 1024x768@87 1024x768@60 1024x768@72 1024x768@75 1920x1080@60 1280x720@60
SEEN
