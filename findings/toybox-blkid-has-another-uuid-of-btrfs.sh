#!/bin/sh
# toybox's blkid says another UUID of a btrfs than util-linux's, and its label with 16 bytes before it; of JFS it
# exchanges the two.
#
# Guess: UUID and label as mkfs was told them: root=UUID= of an initramfs is what both are for.
# Seen on 2026-11-30, toybox 0.8.9 (Debian 0.8.9+dfsg-1), util-linux 2.38.1 (2.38.1-5+deb12u3), btrfs-progs 6.2
# (6.2-1+deb12u2), jfsutils 1.1.15 (1.1.15-5), e2fsprogs 1.47.0 (1.47.0-2+b2): of btrfs toybox says the UUID of the
# device, and a label that begins with the UUID of the file system as it stands there, 16 bytes; the UUID of JFS is its
# label's bytes, and the label is the UUID's. Status 0. Of ext4 both agree.
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
    toybox=0.8.9+dfsg-1 util-linux=2.38.1-5+deb12u3 btrfs-progs=6.2-1+deb12u2 jfsutils=1.1.15-5 \
    e2fsprogs=1.47.0-2+b2
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
export LD_LIBRARY_PATH=$libraries
uuid=01234567-89ab-cdef-0123-456789abcdef
for kind in ext4 btrfs jfs; do truncate -s 200M $kind; done
unpacked/sbin/mke2fs -q -t ext4 -L disk -U $uuid ext4
unpacked/sbin/mkfs.btrfs --quiet --label disk --uuid $uuid btrfs >/dev/null 2>&1
unpacked/sbin/mkfs.jfs -q -L disk jfs >/dev/null
of() { sed -n "s/.* $1=\"\([^\"]*\)\".*/\1/p" said; }
for kind in ext4 btrfs jfs; do
    unpacked/sbin/blkid --probe $kind >usual
    unpacked/bin/toybox blkid $kind >said
    for field in UUID LABEL; do
        value=$(of $field)
        [ "$value" = "$(sed -n "s/.* $field=\"\([^\"]*\)\".*/\1/p" usual)" ] && echo "$kind $field: the same" ||
            echo "$kind $field: another one"
    done
done | tee seen
unpacked/bin/toybox blkid jfs | grep -o 'UUID="[^"]*"' | tee -a seen
cmp seen - <<"SEEN"
ext4 UUID: the same
ext4 LABEL: the same
btrfs UUID: another one
btrfs LABEL: another one
jfs UUID: another one
jfs LABEL: another one
UUID="6469736b-0000-0000-0000-000000000000"
SEEN
