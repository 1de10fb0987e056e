#!/bin/sh
# qemu-io ends with status 0 where an aio_read has failed, or has read what it should not.
#
# Guess: as with read, for which it has exit status 1 in both cases; a test whose verdict is the status needs it.
# Seen on 2026-11-29, qemu-io 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): "Pattern verification failed" and "readv failed:
# Input/output error" are printed, and the status is 0. The same with read instead of aio_read: 1.
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
fetch install --yes --download-only --no-install-recommends qemu-utils=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
head -c 1M /dev/zero >image
for command in read aio_read; do
    for arguments in "-P 0x22 0 4k" "2M 4k"; do
        status=0
        run qemu-io -f raw -c "$command $arguments" -c aio_flush image || status=$?
        echo "$command $arguments: status $status"
    done
done | tee seen
[ "$(grep -c "^read .*: status 1$" seen)" = 2 ]
[ "$(grep -c "^aio_read .*: status 0$" seen)" = 2 ]
grep -q "Pattern verification failed" seen
