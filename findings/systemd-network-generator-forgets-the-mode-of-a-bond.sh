#!/bin/sh
# systemd-network-generator takes a bond from the kernel's command line and leaves out its options, the mode among them.
#
# Guess: mode and miimon in the .netdev file's [Bond], as the manual has it: "bond= ... translated into systemd.netdev(5)
# files. See dracut.cmdline(7) for option syntax", where options are the third part; or the line is refused.
# Seen on 2026-11-30, systemd 252 (Debian 252.39-1~deb12u2): of bond=bond0:eth0,eth1:mode=802.3ad,miimon=100:9000 the
# name, the ports and the MTU behind the options are there, and no [Bond]; status 0, no word. A guest that was told
# 802.3ad or active-backup gets the kernel's default. Options that do not exist are taken as silently.
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
fetch install --yes --download-only --no-install-recommends systemd=252.39-1~deb12u2
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
for options in mode=802.3ad,miimon=100 mode=active-backup,primary=eth0 nothing=such; do
    rm -rf root
    status=0
    LD_LIBRARY_PATH=$libraries unpacked/lib/systemd/systemd-network-generator --root root -- \
        "bond=bond0:eth0,eth1:$options:9000" ip=bond0:dhcp >remarks 2>&1 || status=$?
    echo "$options: status $status, $(wc --lines <remarks) remarks"
    netdev=$(find root -name "*bond0.netdev")
    grep -v "^#" "$netdev" | grep . | paste -sd" "
done | tee seen
cmp seen - <<"SEEN"
mode=802.3ad,miimon=100: status 0, 0 remarks
[NetDev] Kind=bond Name=bond0 MTUBytes=9000
mode=active-backup,primary=eth0: status 0, 0 remarks
[NetDev] Kind=bond Name=bond0 MTUBytes=9000
nothing=such: status 0, 0 remarks
[NetDev] Kind=bond Name=bond0 MTUBytes=9000
SEEN
