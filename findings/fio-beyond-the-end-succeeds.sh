#!/bin/sh
# fio that is told to read behind the end of its file reads nothing, and that is a success.
#
# Guess: an error that names the offset and the size, or a verdict other than 0.
# Seen on 2026-11-28, fio 3.33 (Debian 3.33-3): with an offset of 2 MiB in a file of 1 MiB the job does no I/O at all,
# its JSON says error 0 and total_ios 0, and the exit status is 0. A workload whose verdict is the exit status passes on
# a disk that is smaller than was thought.
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
head -c 1M /dev/zero >file
run fio --name=beyond --filename=file --filesize=1M --offset=2M --rw=read --bs=4k --output-format=json --output=said
status=$?
grep -E "\"(error|total_ios)\"" said | sort -u
echo "exit status $status"
[ "$status" = 0 ]
[ "$(grep -c "\"total_ios\" : 0" said)" -ge 1 ]
if grep "\"total_ios\" : [1-9]" said || grep "\"error\" : [1-9]" said; then exit 1; fi
