#!/bin/sh
# `lscpu --sysroot DIRECTORY` of an Arm guest's /proc and /sys says "Architecture: x86_64".
#
# Guess: all that it prints is of the directory, "a Linux instance other than the instance from which the lscpu
# command is issued", as the manual has it, or left out.
# Seen on 2026-11-30, lscpu of util-linux 2.38.1 (Debian 2.38.1-5+deb12u3): the architecture is the one of the kernel
# that runs lscpu, above vendor, model and flags of the guest's processor, in JSON too.
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
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }

# As an arm64 guest of QEMU (-machine virt -cpu cortex-a72) has them.
mkdir -p guest/proc guest/sys/devices/system/cpu/cpu0/topology
cat >guest/proc/cpuinfo <<"CPU"
processor	: 0
BogoMIPS	: 125.00
Features	: fp asimd evtstrm crc32 cpuid
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x0
CPU part	: 0xd08
CPU revision	: 3

CPU
for list in online possible present; do echo 0 >"guest/sys/devices/system/cpu/$list"; done
for name in core_cpus package_cpus; do echo 1 >"guest/sys/devices/system/cpu/cpu0/topology/$name"; done
run lscpu --sysroot guest | tee seen
grep -Eq "^Architecture: +$(uname -m)$" seen
grep -Eq "^Vendor ID: +ARM$" seen
grep -Eq "^Model name: +Cortex-A72$" seen
