#!/bin/sh
# mcopy without a terminal does not copy a file or folder that is named aux or con, and says nothing; in a tree it goes
# on.
#
# Guess: as its manual has it, "prn" becomes "prn-1"; or an error that names the file. UEFI and Linux have no such
# devices.
# Seen on 2026-11-29, mtools 4.0.32 (Debian 4.0.33-1+really4.0.32-1): it means to ask, and where nobody can answer it
# ends with 1 and not a word; of a folder that is copied with -s all below `aux` is missing, and of the rest nothing.
# aux.h and lpt1.txt, which are as much devices to DOS, are copied.
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
fetch install --yes --download-only --no-install-recommends mtools=4.0.33-1+really4.0.32-1 dosfstools=4.2-1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }

export MTOOLSRC=/dev/null
mkdir -p tree/aux tree/z
for name in tree/aux/file tree/z/con tree/z/last tree/z/aux.h tree/z/lpt1.txt; do echo data >$name; done
LD_LIBRARY_PATH=$libraries "$(find "$work/unpacked" -name mkfs.fat)" -C disk 1440 >made
{
    status=0
    run mcopy -i disk tree/z/con :: </dev/null >said 2>&1 || status=$?
    echo "con: status $status, $(wc -c <said) bytes said"
    status=0
    run mcopy -s -i disk tree :: </dev/null >said 2>&1 || status=$?
    echo "tree: status $status, $(wc -c <said) bytes said"
    run mdir -/ -b -i disk :: | LC_ALL=C sort
} | tee seen
cmp seen - <<"SEEN"
con: status 1, 0 bytes said
tree: status 1, 0 bytes said
::/tree/
::/tree/z/
::/tree/z/aux.h
::/tree/z/last
::/tree/z/lpt1.txt
SEEN
