#!/bin/sh
# The packets of QEMU's filter-dump are dated by the guest's clock: of the year that -rtc says, without the time it was
# paused.
#
# Guess: a capture has the time of day at which its packets came by, as tcpdump's on the host has it, so that it can be
# laid beside a log of the host or a capture of the other side.
# Seen on 2026-11-29, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3), tshark 4.0.17: with `-rtc base=2001-02-03T04:05:06`
# and twenty seconds of standing still at the start the first packet is of 04:05:09 on that day. The description of
# filter-dump says nothing of a clock. The captures of its USB devices (`pcap=`) are of the host's time.
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
fetch install --yes --download-only --no-install-recommends \
    qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 ipxe-qemu=1.0.0+git-20190125.36a4c85-5.1 \
    tshark=4.0.17-0+deb12u3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
qemu() {
    LD_LIBRARY_PATH=$libraries unpacked/usr/bin/qemu-system-x86_64 -L unpacked/usr/share/qemu \
        -L unpacked/usr/share/seabios -L unpacked/usr/lib/ipxe/qemu -nodefaults -display none "$@"
}

# The network card's own ROM asks for an address as soon as it is run.
{
    printf '{"execute": "qmp_capabilities"}\n'
    sleep 20 # it stands still, and the host's clock goes on
    printf '{"execute": "cont"}\n'
    for _ in $(seq 240); do
        [ "$(stat -c %s packets)" -le 400 ] || break
        sleep 0.5
    done
    printf '{"execute": "quit"}\n'
    sleep 2
} | qemu -machine pc -accel tcg -S -qmp stdio -boot n -rtc base=2001-02-03T04:05:06 \
    -netdev user,id=net,restrict=on -device e1000,netdev=net \
    -object filter-dump,id=dump,netdev=net,file=packets >said
first=$(LD_LIBRARY_PATH=$libraries unpacked/usr/bin/tshark -r packets -c 1 -T fields -e frame.time_epoch 2>errors)
began=$(date -u -d 2001-02-03T04:05:06 +%s)
date -u -d "@$first"
echo "seconds since the guest's clock began: $((${first%.*} - began)); it stood still for 20 at first"
[ "${first%.*}" -ge "$began" ]
[ "${first%.*}" -lt "$((began + 20))" ]
