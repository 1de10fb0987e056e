#!/bin/sh
# `mke2fs -d FOLDER` gives all in the folder the mode that it has there, but for the folder itself.
#
# Guess: the root of the file system is the folder: its mode, its owner and its times, as those of all below it.
# Seen on 2026-11-29, mke2fs 1.47.0 (Debian 1.47.0-2+b2; 1.47.2 does the same): a folder of mode 1777 is 0755 as the
# root, and root's; one below it has its mode. A disk made for a guest's /tmp, or for a service that runs as another
# user, is one on which that user cannot make a file at the top.
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
fetch install --yes --download-only --no-install-recommends e2fsprogs=1.47.0-2+b2
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
mkdir -p disk/below
chmod 1777 disk
chmod 1777 disk/below
truncate -s 4M image
LD_LIBRARY_PATH=$libraries "$work/unpacked/sbin/mke2fs" -q -F -d disk image
for each in / /below; do
    LD_LIBRARY_PATH=$libraries "$work/unpacked/sbin/debugfs" -R "stat $each" image 2>/dev/null | tr "\n" " " |
        sed "s|.*Mode: *\([0-7]*\).*|$each: \1\n|"
done | tee seen
cmp seen - <<"SEEN"
/: 0755
/below: 01777
SEEN
