#!/bin/sh
# debugfs ends with status 0 when what it was told to do has failed: with -R, and with a file of commands as well.
#
# Guess: -R is for scripts, so that its one command's failure is the program's; and a file of commands ends at the first
# that fails, or with a failure at its end.
# Seen on 2026-11-29, debugfs 1.47.0 (Debian 1.47.0-2+b2): a file that is not there is not dumped,
# one whose source is missing is not written, and one for which there is no room has its whole size and zeros for its
# end, each with 0 and a line on standard error. A build of guest images whose verdict is the status makes images
# without files, or with halves of them.
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
debugfs() { LD_LIBRARY_PATH=$libraries "$work/unpacked/sbin/debugfs" "$@"; }
truncate -s 1M image
LD_LIBRARY_PATH=$libraries "$work/unpacked/sbin/mke2fs" -q -F image
head -c 2M /dev/urandom >large
ask() {
    status=0
    debugfs "$@" image >said 2>&1 || status=$?
    echo "$*: status $status, $(grep -cE "File not found|No such file|Could not allocate" said || :) errors said"
}
printf '%s\n' "write missing b" "dump /missing out" >commands
{
    ask -R "dump /missing out"
    ask -w -R "write missing a"
    ask -w -R "write large large"
    ask -w -f commands
} | tee seen
debugfs -R "dump /large back" image 2>/dev/null
echo "large: $(stat -c %s back) bytes, $(cmp large back 2>&1 | grep -c differ) difference" | tee -a seen
cmp seen - <<"SEEN"
-R dump /missing out: status 0, 1 errors said
-w -R write missing a: status 0, 2 errors said
-w -R write large large: status 0, 1 errors said
-w -f commands: status 0, 3 errors said
large: 2097152 bytes, 1 difference
SEEN
