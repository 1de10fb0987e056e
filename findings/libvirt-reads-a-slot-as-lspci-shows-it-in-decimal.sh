#!/bin/sh
# In libvirt's XML slot='10' of a PCI device is 0a, '010' is 08, and the USB vendor '1234' is 04d2.
#
# Guess: 10, as lspci prints it: the documentation calls bus and slot "a hex value", and libvirt's schema takes 1f, and
# 1d6b as a vendor, without 0x.
# Seen on 2026-11-29, libvirt 9.0.0 (Debian 9.0.0-4+deb12u2), its test driver: a number without 0x is decimal, and octal
# behind a 0. Who copies 10:10.1 from lspci into <hostdev> passes 0a:0a.1 on, without a word; 1f and 1d6b, which the
# schema is content with, are refused as "Expected non-negative integer value".
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
fetch install --yes --download-only --no-install-recommends libvirt-clients=9.0.0-4+deb12u2
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
export XDG_CONFIG_HOME="$work" XDG_CACHE_HOME="$work" XDG_RUNTIME_DIR="$work"
asked() {
    printf "<domain type='test'><name>guest</name><memory>8192</memory><os><type>hvm</type></os><devices>" >guest.xml
    printf "<hostdev mode='subsystem' type='%s'><source>%s</source></hostdev></devices></domain>" "$1" "$2" >>guest.xml
    LD_LIBRARY_PATH=$libraries unpacked/usr/bin/virsh -c test:///default "define guest.xml; dumpxml guest" 2>&1 |
        grep -Eo "bus='[^/]*|Invalid value.*|vendor id='[^/]*" | head -n 1
}
{
    asked pci "<address domain='0' bus='10' slot='10' function='1'/>"
    asked pci "<address domain='0' bus='0x10' slot='0x10' function='1'/>"
    asked pci "<address domain='0' bus='010' slot='010' function='1'/>"
    asked pci "<address domain='0' bus='0' slot='1f' function='1'/>"
    asked usb "<vendor id='1234'/><product id='0x1'/>"
    asked usb "<vendor id='1d6b'/><product id='0x1'/>"
    for kind in pciSlot usbId; do
        echo "$kind: $(cat unpacked/usr/share/libvirt/schemas/*.rng | grep -A 4 "name=\"$kind\"" | grep -o "(0x)[^<]*")"
    done
} | tee seen
cmp seen - <<"SEEN"
bus='0x0a' slot='0x0a' function='0x1'
bus='0x10' slot='0x10' function='0x1'
bus='0x08' slot='0x08' function='0x1'
Invalid value for attribute 'slot' in element 'address': '1f'. Expected non-negative integer value
vendor id='0x04d2'
Invalid value for attribute 'id' in element 'vendor': '1d6b'. Expected non-negative integer value
pciSlot: (0x)?[0-1]?[0-9a-fA-F]
usbId: (0x)?[0-9a-fA-F]{1,4}
SEEN
