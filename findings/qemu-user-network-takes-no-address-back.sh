#!/bin/sh
# The DHCP server of QEMU's user network has sixteen addresses and takes none back: a seventeenth MAC address gets no
# answer, though those before it have given theirs up.
#
# Guess: an address that was released (DHCPRELEASE), or whose lease is over, is free for the next one; the network is a
# /24, and the leases are of a day.
# Seen on 2026-11-30, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3) with libslirp 4.7.0: of twenty clients one after
# another, each of which releases its address before the next one comes, sixteen have an offer; to the others nothing is
# said, by DHCP or by QEMU. That the server has sixteen addresses is in the manual (dhcpstart), that they are used up
# for good is not. A guest that draws a new MAC address with each boot, or whose network card a test plugs anew, is
# without a network at the seventeenth time; so are containers or nested guests behind a bridge.
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
cat >clients.py <<"CLIENTS"
"""Clients of DHCP on the user network: their frames go by a socket through a hub of QEMU's."""

import os, socket, struct, subprocess, time


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


def frame(mac, source, target, message):
    udp = struct.pack("!HHHH", 68, 67, 8 + len(message), 0) + message
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + addresses
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    return b"\xff" * 6 + mac + b"\x08\x00" + ip + udp


def dhcp(mac, kind, ours="0.0.0.0", options=b""):
    head = struct.pack("!BBBBIHH", 1, 1, 6, 0, 1, 0, 0) + socket.inet_aton(ours) + bytes(12) + mac.ljust(16, b"\0")
    return head + bytes(192) + b"\x63\x82\x53\x63\x35\x01" + bytes([kind]) + options + b"\xff"


def answer():
    """The kind of DHCP's next answer, and its address; none where none comes."""
    try:
        while (data := network.recv(2048))[12:14] != b"\x08\x00":
            pass  # an ARP request
    except TimeoutError:
        return None, None
    return data[284], socket.inet_ntoa(data[58:62])


network, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
network.bind(("127.0.0.1", 0))
theirs.bind(("127.0.0.1", 0))
qemus = theirs.getsockname()
theirs.close()
options = "-machine none -nodefaults -display none -L unpacked/usr/share/qemu -L unpacked/usr/share/seabios".split()
hub = "-netdev user,id=user -netdev hubport,hubid=0,id=a,netdev=user -netdev hubport,hubid=0,id=b,netdev=wire".split()
udp = f"socket,id=wire,udp=127.0.0.1:{network.getsockname()[1]},localaddr=127.0.0.1:{qemus[1]}"
program = ["unpacked/usr/bin/qemu-system-x86_64", *options, "-netdev", udp, *hub, "-monitor", "none"]
qemu = subprocess.Popen(program, stderr=subprocess.DEVNULL)
network.settimeout(3)
OFFER, ACK = 2, 5
for number in range(20):
    mac = bytes([0x52, 0x54, 0, 0, 0, number])
    for _ in range(20 if not number else 2):  # the first one also waits for QEMU
        network.sendto(frame(mac, "0.0.0.0", "255.255.255.255", dhcp(mac, 1)), qemus)
        kind, address = answer()
        if kind == OFFER:
            break
    if kind != OFFER:
        print(f"client {number + 1}: no answer")
        continue
    wanted = b"\x32\x04" + socket.inet_aton(address)
    network.sendto(frame(mac, "0.0.0.0", "255.255.255.255", dhcp(mac, 3, options=wanted)), qemus)
    kind, address = answer()
    print(f"client {number + 1}: {address}", "acknowledged" if kind == ACK else kind)
    server = b"\x36\x04" + socket.inet_aton("10.0.2.2")
    network.sendto(frame(mac, address, "10.0.2.2", dhcp(mac, 7, address, server)), qemus)
qemu.kill()
qemu.wait()
CLIENTS
LD_LIBRARY_PATH=$libraries python3 clients.py | tee seen
cmp seen - <<"SEEN"
client 1: 10.0.2.15 acknowledged
client 2: 10.0.2.16 acknowledged
client 3: 10.0.2.17 acknowledged
client 4: 10.0.2.18 acknowledged
client 5: 10.0.2.19 acknowledged
client 6: 10.0.2.20 acknowledged
client 7: 10.0.2.21 acknowledged
client 8: 10.0.2.22 acknowledged
client 9: 10.0.2.23 acknowledged
client 10: 10.0.2.24 acknowledged
client 11: 10.0.2.25 acknowledged
client 12: 10.0.2.26 acknowledged
client 13: 10.0.2.27 acknowledged
client 14: 10.0.2.28 acknowledged
client 15: 10.0.2.29 acknowledged
client 16: 10.0.2.30 acknowledged
client 17: no answer
client 18: no answer
client 19: no answer
client 20: no answer
SEEN
