#!/bin/sh
# The disk that nbdkit's plugin `floppy` makes of a folder is none that mtools opens, and fsck.fat finds it damaged as soon
# as the folder has one within.
#
# Guess: a FAT file system that the usual tools read and call clean, as mkfs.fat and mcopy make it of the same folder.
# Seen on 2026-11-30, nbdkit 1.32.5 (Debian 1.32.5-1), mtools 4.0.33 (4.0.33-1+really4.0.32-1), dosfstools 4.2 (4.2-1):
# mdir refuses it, as heads and sectors are 0 ("The devil is in the details: zero number of heads or sectors"). fsck.fat
# says "Invalid '..' entry in the second slot" of each first folder and ends with 1, without folders with 0; a guest that
# checks its disks at the start wants to write what cannot be written.
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
fetch install --yes --download-only --no-install-recommends nbdkit=1.32.5-1 libnbd-bin=1.14.2-1 mtools=4.0.33-1+really4.0.32-1 dosfstools=4.2-1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/$program" "$@"; }
fsck() { LD_LIBRARY_PATH=$libraries unpacked/sbin/fsck.fat -n "$@"; }
plugin=$(find unpacked -name nbdkit-floppy-plugin.so)
export libraries work
mkdir -p flat deep/inner
echo text >flat/file
echo text >deep/inner/file
for folder in flat deep; do
    run bin/nbdkit --unix - "$plugin" $folder \
        --run 'LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/nbdcopy" "$uri" disk'
    tail -c +1048577 disk >$folder.fat
done
truncate -s 40M usual.fat
LD_LIBRARY_PATH=$libraries unpacked/sbin/mkfs.fat -F 32 usual.fat >/dev/null
run bin/mcopy -s -i usual.fat deep ::
{
    for image in usual flat deep; do
        status=0
        run bin/mdir -i $image.fat :: >said 2>&1 || status=$?
        echo "$image: mdir $status, $(grep -c "heads or sectors" said || true) complaints of heads or sectors"
        status=0
        fsck $image.fat >said 2>&1 || status=$?
        echo "$image: fsck.fat $status, $(grep -c "Invalid '..' entry" said || true) folders"
    done
} | tee seen
cmp seen - <<"SEEN"
usual: mdir 0, 0 complaints of heads or sectors
usual: fsck.fat 0, 0 folders
flat: mdir 1, 1 complaints of heads or sectors
flat: fsck.fat 0, 0 folders
deep: mdir 1, 1 complaints of heads or sectors
deep: fsck.fat 1, 1 folders
SEEN
