#!/bin/sh
# fio whose blocks do not fill its file writes and verifies whole blocks alone, and never touches the end of the file.
#
# Guess: the last block is a short one; or it is said that the size is no multiple.
# Seen on 2026-11-29, fio 3.33 (Debian 3.33-3): with bs=3k and a file of 1 MiB 1,023 KiB are written, without a word and
# with status 0; a verifying job that reads it all finds nothing wrong, and the last KiB has the bytes from before. With
# bs=1M and a disk of 4.5 MiB half a MiB is left out. What is wrong at the end of a disk, where drivers are wrong, no
# such workload sees.
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
fetch install --yes --download-only --no-install-recommends fio=3.33-3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
for sizes in "3k 1048576" "1M 4718592"; do
    block=${sizes% *} size=${sizes#* }
    head -c "$size" /dev/zero | tr '\0' x >disk
    run fio --name=all --filename=disk --rw=write --bs="$block" --verify=crc32c --output-format=json --output=said
    status=$?
    left=$(tail -c 1048576 disk | tr -cd x | wc -c)
    kept=$(tail -c 1024 disk | tr -d x | wc -c)
    written=$(sed -n '/"write"/,$s/.*"io_bytes" : \([0-9]*\).*/\1/p' said | head -n 1)
    echo "bs=$block: status $status, $written bytes of $size written; of the last 1,024 $kept are new"
    [ "$left" -ge 1024 ]
done | tee seen
cmp seen - <<"SEEN"
bs=3k: status 0, 1047552 bytes of 1048576 written; of the last 1,024 0 are new
bs=1M: status 0, 4194304 bytes of 4718592 written; of the last 1,024 0 are new
SEEN
