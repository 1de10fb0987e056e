#!/bin/sh
# A guest that has run and is paused is in the state `prelaunch` after `system_reset`.
#
# Guess: `paused`, as before the reset; `prelaunch` is that of a QEMU whose guest has never run (-S), by its
# description. Who waits for `paused`, or takes `prelaunch` for "never started", is wrong after a reset.
# Seen on 2026-11-29, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): running, paused, then prelaunch; QEMU 11.1.3 does the
# same.
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
fetch install --yes --download-only --no-install-recommends qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
# What QEMU answers to these commands, in their order; it ends by the last.
ask() {
    {
        printf '{"execute": "qmp_capabilities"}\n'
        cat
        printf '{"execute": "quit"}\n'
        sleep 5 # as long as its input is open QEMU reads it
    } | env LD_LIBRARY_PATH="$libraries" unpacked/usr/bin/qemu-system-x86_64 -L unpacked/usr/share/qemu \
        -L unpacked/usr/share/seabios -machine pc -accel tcg -S -nodefaults -display none -qmp stdio | tr -d "\r"
}
ask <<"COMMANDS" >said
{"execute": "cont"}
{"execute": "query-status"}
{"execute": "stop"}
{"execute": "query-status"}
{"execute": "system_reset"}
{"execute": "query-status"}
COMMANDS
grep -o '"status": "[a-z]*"' said | cut -d '"' -f 4 | tee seen
[ "$(tr "\n" " " <seen)" = "running paused prelaunch " ]
