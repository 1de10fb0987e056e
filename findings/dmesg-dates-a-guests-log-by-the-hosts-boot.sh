#!/bin/sh
# `dmesg -F FILE -T` dates a guest's log by the moment at which this machine was booted.
#
# Guess: a log in a file has seconds since the boot of its own machine, and not when that was, so that -T is refused
# with -F, or the lines stay as they are.
# Seen on 2026-11-30, dmesg of util-linux 2.38.1 (Debian 2.38.1-5+deb12u3): the seconds in the file are added to the
# host's boot, whoever wrote the file; no word is said of it. So do --time-format iso and --reltime, and --since and
# --until choose lines by those dates. The manual warns of suspended machines alone.
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
fetch install --yes --download-only --no-install-recommends util-linux=2.38.1-5+deb12u3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/bin/$program" "$@"; }

cat >log <<"LOG"
<6>[    0.000000] Linux version 6.1.0 (guest of another year)
<6>[   60.000000] virtio_blk virtio0: [vda] 2048 512-byte logical blocks
LOG
booted=$(sed -n 's/^btime //p' /proc/stat)
run dmesg -F log -T | tee seen
for second in 0 60; do
    said=$(grep -o "^\[[^]]*" seen | tr -d "[" | sed -n "$((second / 60 + 1))p")
    far=$(($(date -d "$said" +%s) - booted - second))
    echo "line of second $second: $far s from the host's boot and as many seconds"
    [ "$far" -ge -3 ] && [ "$far" -le 3 ]
done
run dmesg -F log --since "$(date -d "@$((booted + 30))" "+%Y-%m-%d %H:%M:%S")" | tee late
[ "$(wc -l <late)" = 1 ]
grep -q virtio_blk late
