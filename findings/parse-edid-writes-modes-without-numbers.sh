#!/bin/sh
# parse-edid writes the modes of a display without any number: `Modeline "Mode 0" +hsync +vsync`.
#
# Guess: a line for xorg.conf, which that output is for, with the clock and the eight numbers of the mode; they are in
# the EDID, and edid-decode shows them.
# Seen on 2026-11-30, read-edid 3.0.2 (Debian 12, 3.0.2-1.1; amd64), beside edid-decode: of an EDID 1.3 with 1920x1080
# at 148.5 MHz both signs of the syncs are there and no number, and the status is 0. Its other lines are right. In
# reports of other people such lines are seen beside whole ones, which are from the table of an extension
# (rockowitz/ddcutil 201, bulletmark/edid-rw 12, of other matters); an issue of this was not found.
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
    read-edid=3.0.2-1.1 edid-decode=0.1~git20220315.cb74358c2896-1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
tool() {
    LD_LIBRARY_PATH=$libraries "$work/unpacked/$@"
}

cat >make.py <<"PROGRAM"
def text(tag, content):
    return bytes([0, 0, 0, tag, 0]) + content.ljust(13)


edid = bytes.fromhex("00ffffffffffff00 4914 3412 00000000 0a22 0103 80341d78 06 ee91a3544c99260f5054 210800")
edid += b"\1\1" * 8
edid += bytes.fromhex("023a80187138 2d40582c4500 082221 0000 1e")
edid += text(0xFD, b"\x32\x4b\x1e\x5a\x1e\0\n") + text(0xFC, b"Guest\n") + text(0xFE, b"made here\n") + b"\0"
open("edid", "wb").write(edid + bytes([-sum(edid) % 256]))
PROGRAM
python3 make.py
{
    tool usr/bin/edid-decode --check edid | grep -E "DTD 1|conformity"
    tool usr/bin/parse-edid <edid 2>/dev/null && echo "status $?"
} | tr -s " \t" " " | tee seen
cmp seen - <<"SEEN"
 DTD 1: 1920x1080 60.000000 Hz 16:9 67.500 kHz 148.500000 MHz (520 mm x 290 mm)
EDID conformity: PASS
Section "Monitor"
 Identifier "Guest"
 ModelName "Guest"
 VendorName "RHT"
 # Monitor Manufactured week 10 of 2024
 # EDID version 1.3
 # Digital Display
 DisplaySize 520 290
 Gamma 2.20
 Option "DPMS" "false"
 Horizsync 30-90
 VertRefresh 50-75
 # Maximum pixel clock is 300MHz
 Modeline "Mode 0" +hsync +vsync 
EndSection
status 0
SEEN
