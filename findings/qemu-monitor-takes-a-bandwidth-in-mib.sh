#!/bin/sh
# QEMU's monitor takes `migrate_set_parameter max-bandwidth` in MiB/s, prints it in bytes/s, and takes its brother in bytes.
#
# Guess: a number without a unit is what `info migrate_parameters` prints beside it ("bytes/second"), and what QMP's command
# takes: what was read can be set again.
# Seen on 2026-11-29, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3; 11.1.3 does the same, and so of
# avail-switchover-bandwidth, which is newer): the 134217728 that was read gives 140737488355328, that is no limit any more;
# 1048576 for max-postcopy-bandwidth and xbzrle-cache-size is 1048576. A script that slows a migration down by the number
# that QMP takes finds it at full speed, without an error; with a "B" after it the number is in bytes.
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
fetch install --yes --download-only --no-install-recommends qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
# What QEMU's human monitor answers to these lines, in their order.
ask() {
    {
        printf '{"execute": "qmp_capabilities"}\n'
        while read -r line; do
            printf '{"execute": "human-monitor-command", "arguments": {"command-line": "%s"}}\n' "$line"
        done
        printf '{"execute": "quit"}\n'
        sleep 5 # as long as its input is open QEMU reads it
    } | env LD_LIBRARY_PATH="$libraries" unpacked/usr/bin/qemu-system-x86_64 -L unpacked/usr/share/qemu \
        -machine none -nodefaults -display none -qmp stdio | sed 's/\\r\\n/\n/g'
}
ask <<"LINES" >said
info migrate_parameters
migrate_set_parameter max-bandwidth 134217728
migrate_set_parameter max-postcopy-bandwidth 1048576
migrate_set_parameter xbzrle-cache-size 1048576
info migrate_parameters
migrate_set_parameter max-bandwidth 134217728B
info migrate_parameters
LINES
grep -oE "(max-bandwidth|max-postcopy-bandwidth|xbzrle-cache-size): [0-9]+" said | tee seen
cmp seen - <<"SEEN"
max-bandwidth: 134217728
xbzrle-cache-size: 67108864
max-postcopy-bandwidth: 0
max-bandwidth: 140737488355328
xbzrle-cache-size: 1048576
max-postcopy-bandwidth: 1048576
max-bandwidth: 134217728
xbzrle-cache-size: 1048576
max-postcopy-bandwidth: 1048576
SEEN
