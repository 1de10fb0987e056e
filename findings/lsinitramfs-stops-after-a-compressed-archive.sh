#!/bin/sh
# lsinitramfs lists one compressed archive, of which the kernel unpacks as many as there are; with status 0.
#
# Guess: an initramfs is any number of archives one after the other, each plain or compressed (the kernel's description of
# the format), as boot loaders and test systems append theirs: the tool lists the files of all, or fails.
# Seen on 2026-11-29, initramfs-tools-core 0.142+deb12u3 (Debian 12): of two compressed archives the first one's file is
# listed and the second one's is not, without a word and with status 0; unmkinitramfs unpacks the same one alone.
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
fetch install --yes --download-only --no-install-recommends initramfs-tools-core=0.142+deb12u3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
export LD_LIBRARY_PATH="$libraries" PATH="$work/unpacked/usr/bin:$work/unpacked/bin:$PATH"
for name in one two; do
    mkdir "$name"
    echo "$name" >"$name/$name"
    (cd "$name" && find . -type f | cpio --quiet -o -H newc | gzip) >"$name.gz"
done
cat one.gz two.gz >both
sh unpacked/usr/bin/lsinitramfs both | tee seen
echo "status $?"
mkdir out
sh unpacked/usr/bin/unmkinitramfs both out
find out -type f | tee -a seen
[ "$(tr "\n" " " <seen)" = "one out/one " ]
