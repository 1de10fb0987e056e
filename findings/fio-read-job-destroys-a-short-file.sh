#!/bin/sh
# A read job of fio overwrites its file when that is shorter than `size`, and removes it when it may create none.
#
# Guess: a job that only reads changes nothing; what is missing is an end of file, or an error.
# Seen on 2026-11-29, fio 3.33 (Debian 3.33-3): the file is laid out anew at its full size, the half that was there
# included: it ends with other bytes, and the job with status 0. With --allow_file_create=0 the job ends with status 1
# ("file creation disallowed"), and the file that was there is gone. With --readonly it is kept, and the job fails. So
# whoever reads an image back after a resize or a copy that fell short has lost it, and the evidence with it.
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
for file in kept laid_out removed; do yes data | head -c 512K >$file; done
job() { run fio --name=job --size=1M --rw=read --bs=4k --minimal "$@" >>said 2>&1 && echo "status 0" || echo "status $?"; }
kept=$(job --filename=kept --readonly)
laid_out=$(job --filename=laid_out)
removed=$(job --filename=removed --allow_file_create=0)
echo "with --readonly: $kept, $(head -c 5 kept | tr -d "\n") and $(stat -c %s kept) bytes"
echo "without: $laid_out, $(stat -c %s laid_out) bytes, first ones $(head -c 4 laid_out | od -An -tx1)"
echo "with --allow_file_create=0: $removed, $(ls removed 2>/dev/null || echo no file)"
[ "$kept" = "status 1" ]
yes data | head -c 512K | cmp - kept
[ "$laid_out" = "status 0" ]
[ "$(stat -c %s laid_out)" = 1048576 ]
if yes data | head -c 512K | cmp -s -n 524288 - laid_out; then exit 1; fi
[ "$removed" = "status 1" ]
[ ! -e removed ]
