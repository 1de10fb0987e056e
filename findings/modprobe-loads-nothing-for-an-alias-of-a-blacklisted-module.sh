#!/bin/sh
# An alias of one's own in modprobe.d to a blacklisted module loads nothing, and modprobe succeeds without a word.
#
# Guess: blacklist has the aliases inside a module passed over, "that particular module's internal aliases" in the
# manual, so that an alias written in modprobe.d still leads to it, as the module's own name does.
# Seen on 2026-11-30, modprobe of kmod 30 (Debian 30+20221128-1): nothing is loaded, the status is 0, with -v as well,
# and --resolve-alias names the module all the same. Only the name itself loads it.
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
fetch install --yes --download-only --no-install-recommends kmod=30+20221128-1 binutils=2.40-2
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
kmod() { as=$1 && shift && (ln -sf unpacked/bin/kmod "$as" && LD_LIBRARY_PATH=$libraries "./$as" "$@"); }

# A module is an ELF file with a section .modinfo.
modules=root/lib/modules/6.1.0
mkdir -p "$modules/kernel" modprobe.d
printf 'name=network\0license=GPL\0depends=\0' >modinfo
LD_LIBRARY_PATH=$libraries unpacked/usr/bin/objcopy --input-target binary --output-target elf64-x86-64 \
    --rename-section .data=.modinfo modinfo "$modules/kernel/network.ko"
touch "$modules/modules.order" "$modules/modules.builtin" "$modules/modules.builtin.modinfo"
kmod depmod -b root 6.1.0
echo "alias eth0 network" >modprobe.d/own.conf
asked() {
    status=0
    kmod modprobe --dirname root --set-version 6.1.0 --config modprobe.d "$@" >said 2>&1 || status=$?
    echo "$*: status $status, $(grep -c "insmod.*network.ko" said) loaded"
}
{
    asked --show-depends eth0
    echo "blacklist network" >>modprobe.d/own.conf
    asked --show-depends eth0
    asked --verbose --dry-run eth0
    asked --show-depends network
    asked --resolve-alias eth0 && cat said
} | tee seen
cmp seen - <<"SEEN"
--show-depends eth0: status 0, 1 loaded
--show-depends eth0: status 0, 0 loaded
--verbose --dry-run eth0: status 0, 0 loaded
--show-depends network: status 0, 1 loaded
--resolve-alias eth0: status 0, 0 loaded
network
SEEN
