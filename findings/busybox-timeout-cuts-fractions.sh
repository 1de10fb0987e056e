#!/bin/sh
# busybox's timeout takes a fraction of a second, and cuts it off; 0, which is "no limit" elsewhere, kills after a
# second.
#
# Guess: 0.2 and 1.5 are what they are for its own `sleep`, which takes fractions, or they are refused; and 0 is as in
# coreutils.
# Seen on 2026-11-29, busybox 1.35.0 (Debian 1:1.35.0-4+deb12u1+b1): timeout 1.9 ends `sleep 3` after 1.0 s, timeout 0.2
# after 1.0 s as well, and so does timeout 0. The status is 143 (SIGTERM's), where coreutils has 124.
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
fetch install --yes --download-only --no-install-recommends busybox-static=1:1.35.0-4+deb12u1+b1 coreutils
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$(find "$work/unpacked" -name "$program" -path "*bin/*" | head -n 1)" "$@"; }
for limit in 1.9 0.2 0; do
    before=$(date +%s%N)
    status=0
    run busybox timeout "$limit" "$work/unpacked/bin/busybox" sleep 3 || status=$?
    tenths=$((($(date +%s%N) - before) / 100000000))
    echo "busybox timeout $limit: status $status after $tenths tenths of a second"
    if [ "$status" != 143 ] || [ "$tenths" -ge 19 ]; then exit 1; fi
done
status=0
run timeout 0 sleep 2 || status=$?
echo "coreutils' timeout 0: status $status"
[ "$status" = 0 ]
