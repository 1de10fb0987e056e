#!/bin/sh
# QEMU takes a device at 5.1 where nothing is at 5.0, and one in slot 1 of a root port, and no guest ever finds them.
#
# Guess: it is refused, as a second device of one address is; or the guest has it.
# Seen on 2026-11-30, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3), Linux 6.1.176, machine q35: nothing is said, and
# query-pci lists the first. But a slot is looked through only where it has a function 0, and a port's link has only a
# slot 0, so that the guest has neither device: a test with `addr=5.1` for the second of two and without the first sees an
# empty machine, and looks for the fault in the guest.
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
fetch install --yes --download-only --no-install-recommends qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 \
    linux-image-6.1.0-50-cloud-amd64-unsigned=6.1.176-1 busybox-static=1:1.35.0-4+deb12u1+b1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
mkdir -p root/bin root/sys
cp unpacked/bin/busybox root/bin
cat >root/init <<"INIT"
#!/bin/busybox sh
/bin/busybox mount -t sysfs sys /sys
for device in /sys/bus/pci/devices/*; do
    read -r id <$device/device
    echo "the guest has ${device##*/} $id"
done
/bin/busybox poweroff -f
INIT
chmod +x root/init
(cd root && find . | ../unpacked/bin/busybox cpio -o -H newc) >initrd 2>said
timeout 200 env LD_LIBRARY_PATH="$libraries" unpacked/usr/bin/qemu-system-x86_64 -machine q35 -accel tcg -m 256 \
    -L unpacked/usr/share/qemu -L unpacked/usr/share/seabios -nodefaults -display none -no-reboot -serial file:console \
    -kernel unpacked/boot/vmlinuz-6.1.0-50-cloud-amd64 -initrd initrd -append "console=ttyS0 quiet panic=-1" \
    -device virtio-rng-pci,addr=4.0 -device virtio-rng-pci,addr=5.1 \
    -device pcie-root-port,id=below,chassis=1,addr=6 -device virtio-rng-pci,bus=below,addr=1 -qmp stdio <<"QMP" >answers
{"execute": "qmp_capabilities"}
{"execute": "query-pci"}
QMP
cat >list.py <<"PROGRAM"
import json


def devices(devices_of_bus):
    for device in devices_of_bus:
        yield device["slot"], device["function"], device["id"]["device"]
        yield from devices(device.get("pci_bridge", {}).get("devices", ()))


for line in open("answers"):
    answer = json.loads(line).get("return")
    for bus in answer if isinstance(answer, list) else ():
        for slot, function, device in devices(bus["devices"]):
            print(f"QEMU has {slot:02x}.{function} {device:#06x}")
PROGRAM
{
    python3 list.py
    grep -o "the guest has.*0x[0-9a-f]*" console
} | tee seen
cmp seen - <<"SEEN"
QEMU has 00.0 0x29c0
QEMU has 04.0 0x1005
QEMU has 05.1 0x1005
QEMU has 06.0 0x000c
QEMU has 1f.0 0x2918
QEMU has 1f.2 0x2922
QEMU has 1f.3 0x2930
the guest has 0000:00:00.0 0x29c0
the guest has 0000:00:04.0 0x1005
the guest has 0000:00:06.0 0x000c
the guest has 0000:00:1f.0 0x2918
the guest has 0000:00:1f.2 0x2922
the guest has 0000:00:1f.3 0x2930
SEEN
