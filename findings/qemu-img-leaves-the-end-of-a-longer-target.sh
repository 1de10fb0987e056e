#!/bin/sh
# `qemu-img convert -n` onto a longer target leaves what was behind the source's end, and says nothing.
#
# Guess: a target of another size is refused, as a shorter one is ("smaller than input file"); or the rest becomes
# zeros, as what is not in the source is within its size.
# Seen on 2026-11-29, qemu-img 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3; 10.0.13 does the same): the target has its old
# second half with status 0; `compare` finds that, convert is what a restore runs. On a disk that was partitioned with
# GPT the old table's copy at its end is still there.
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
fetch install --yes --download-only --no-install-recommends qemu-utils=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
head -c 1M /dev/urandom >source
head -c 2M /dev/urandom >longer
head -c 512K /dev/urandom >shorter
tail -c 1M longer >end
status=0
run qemu-img convert -n -f raw -O raw source shorter 2>said || status=$?
cat said
echo "shorter: status $status" | tee seen
run qemu-img convert -n -f raw -O raw source longer >said 2>&1
echo "longer: status $?, $(wc -c <said) characters said" | tee -a seen
head -c 1M longer | cmp - source
tail -c 1M longer | cmp - end
[ "$(tr "\n" " " <seen)" = "shorter: status 1 longer: status 0, 0 characters said " ]
