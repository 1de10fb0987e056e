#!/bin/sh
# fdtget and dtc give some numbers of a device tree as texts: a clock of 1.28 GHz is "LK@".
#
# Guess: what the source has as <1280000000> is that number for fdtget, and as good a cell when dtc writes the source
# again.
# Seen on 2026-11-29, dtc and fdtget 1.6.1 (Debian 1.6.1-4+b1; 1.7.2 does the same): both guess from the bytes, as a
# property has no type, and 0x4c4b4000 is three letters and a zero. 1200000000 (0x47868c00) is a number. A harness that
# compares what it reads of a clock, an address or a size with a number is right until it meets one of those; `fdtget -t
# u` is right for all.
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
cat >tree.dts <<"TREE"
/dts-v1/;
/ {
	a { clock-frequency = <1200000000>; };
	b { clock-frequency = <1280000000>; };
	c { reg = <0x41424300 0x60606000>; };
};
TREE
run dtc -O dtb -o tree.dtb tree.dts 2>/dev/null
{
    run fdtget tree.dtb /a clock-frequency
    run fdtget tree.dtb /b clock-frequency
    run fdtget tree.dtb /c reg
    run fdtget -t u tree.dtb /b clock-frequency
    run dtc -O dts tree.dtb 2>/dev/null | grep -E "clock|reg"
} | tee seen
cmp seen - <<"SEEN"
1200000000
LK@
ABC ```
1280000000
		clock-frequency = <0x47868c00>;
		clock-frequency = "LK@";
		reg = "ABC\0```";
SEEN
