#!/bin/sh
# A /delete-property/ or /delete-node/ in an overlay of a device tree deletes nothing, and neither dtc nor fdtoverlay
# says so.
#
# Guess: what is applied to the label is deleted there; or dtc refuses it in a /plugin/, as a compiled overlay has no
# way to say it.
# Seen on 2026-11-29, dtc and fdtoverlay 1.6.1 (Debian 1.6.1-4+b1; 1.7.2 too where a property was to go): dtc ends with 0 and without a
# warning, fdtoverlay applies the rest of the fragment, and property and node are in the result. In a source that is
# compiled with the base the same lines delete both. So a board described by an overlay keeps the device that was to be
# away.
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
fetch install --yes --download-only --no-install-recommends device-tree-compiler=1.6.1-4+b1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
printf '%s\n' '/dts-v1/;' '/ { bus: bus { dma-coherent; device { }; }; };' >base.dts
lines='&bus { added; /delete-property/ dma-coherent; /delete-node/ device; };'
{ cat base.dts && echo "$lines"; } >whole.dts
printf '%s\n' '/dts-v1/;' '/plugin/;' "$lines" >overlay.dts
for each in base whole overlay; do run dtc -@ -O dtb -o $each.dtb $each.dts; done 2>said
run fdtoverlay -i base.dtb -o applied.dtb overlay.dtb 2>>said
for each in whole applied; do
    echo "$each: $(run fdtget -p $each.dtb /bus | tr "\n" " ")and $(run fdtget -l $each.dtb /bus | tr "\n" " ")"
done | tee seen
cat said && [ ! -s said ]
cmp seen - <<"SEEN"
whole: added phandle and 
applied: added dma-coherent phandle and device 
SEEN
