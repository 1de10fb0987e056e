#!/bin/sh
# fio that was told to go on after a wrong block (`continue_on_error=verify`) ends with 0, however many were wrong.
#
# Guess: it reads on to the end so that all wrong blocks are named, and then ends with a failure.
# Seen on 2026-11-29, fio 3.33 (Debian 3.33-3): without the option the first of the wrong blocks ends the job with status 1. With it
# each of them is named on standard error, and the exit status is 0: only `total_err` of its JSON tells.
# The option that one adds to see more of a corruption makes the verdict a pass.
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
job() { run fio --name=job --filename=file --size=1M --bs=4k --verify=crc32c --output-format=json --output=said "$@"; }
job --rw=write --do_verify=0
for block in 10 20 30; do printf wrong | dd of=file bs=1 seek=$((block * 4096 + 2000)) conv=notrunc 2>/dev/null; done
stopped=0
job --rw=read 2>errors || stopped=$?
echo "as it is: status $stopped, $(grep -c "verify failed" errors) wrong block named"
went_on=0
job --rw=read --continue_on_error=verify 2>errors || went_on=$?
echo "going on: status $went_on, $(grep -c "verify failed" errors) wrong blocks named,$(grep -o "\"total_err\" : [0-9]*" said)"
[ "$stopped" = 1 ]
[ "$(grep -c "verify failed" errors)" = 3 ]
[ "$went_on" = 0 ]
