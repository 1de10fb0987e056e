#!/bin/sh
# busybox's `xxd -r` takes letters of the text beside a dump for bytes, so that what comes back is longer than what was
# dumped; and it forgets the addresses.
#
# Guess: `xxd | xxd -r` gives what went in, as vim's xxd, which made the format, has it; and a line's bytes go where its
# address says, with zeros before them.
# Seen on 2026-11-30, busybox 1.35.0 (Debian 1:1.35.0-4+deb12u1+b1), xxd of vim 9.0.1378 (Debian 2:9.0.1378-2+deb12u2):
# behind a full line busybox goes on with the text as if it were hex: of "deadbeefdeadbeef" it makes 24 bytes, with status
# 0, and of random bytes always some more. Short lines are right, and so are texts without such letters, so that a small
# test passes. Of a line at 0x10 and one at 0x100 it makes 8 bytes, vim's xxd 260.
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
fetch install --yes --download-only --no-install-recommends busybox=1:1.35.0-4+deb12u1+b1 xxd=2:9.0.1378-2+deb12u2
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
xxd() {
    case $1 in
    busybox) shift && unpacked/bin/busybox xxd "$@" ;;
    vim) shift && LD_LIBRARY_PATH=$libraries unpacked/usr/bin/xxd "$@" ;;
    esac
}
printf '00000010: 5858 5858\n00000100: 5959 5959\n' >patch
{
    for text in short "in our log: nix!" "the device hangs" deadbeefdeadbeef; do
        printf "%s" "$text" >file
        for by in busybox vim; do
            status=0
            xxd busybox file | xxd $by -r >back || status=$?
            echo "$by, $text: status $status, $(stat -c %s back) of $(stat -c %s file) bytes"
        done
    done
    for by in busybox vim; do
        xxd $by -r patch >made
        echo "$by, a patch: $(stat -c %s made) bytes, YYYY at $(grep -abo YYYY made | cut -d: -f1)"
    done
} | tee seen
cmp seen - <<"SEEN"
busybox, short: status 0, 5 of 5 bytes
vim, short: status 0, 5 of 5 bytes
busybox, in our log: nix!: status 0, 16 of 16 bytes
vim, in our log: nix!: status 0, 16 of 16 bytes
busybox, the device hangs: status 0, 18 of 16 bytes
vim, the device hangs: status 0, 16 of 16 bytes
busybox, deadbeefdeadbeef: status 0, 24 of 16 bytes
vim, deadbeefdeadbeef: status 0, 16 of 16 bytes
busybox, a patch: 8 bytes, YYYY at 4
vim, a patch: 260 bytes, YYYY at 256
SEEN
