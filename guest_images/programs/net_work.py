"""Work for a network card with a station behind it that answers: the kind `ping` of workload.py.

The kernel's own driver has the card. Each ping has other bytes, and an answer is right with just these.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import time
from pathlib import Path

from guest_pci import DeviceError, load_modules
from work import Work

STATION, OURS = "192.0.2.1", "192.0.2.15"
APPEARING = 30.0  # seconds for the driver to find the card
PATIENCE = 10.0  # seconds for an answer, of a device that is being moved, too
SIZES = (0, 1, 56, 512, 1472)
ECHO_REQUEST, ECHO_REPLY = 8, 0


class Ping(Work):
    """Pings the station, with as many bytes as a packet may have."""

    def begin(self) -> None:
        slot = self.options.slot if self.options.slot.count(":") == 2 else f"0000:{self.options.slot}"
        load_modules("virtio_net")
        interface = self.interface(Path("/sys/bus/pci/devices", slot))
        for words in (f"addr replace {OURS}/24 dev {interface}", f"link set {interface} up"):
            subprocess.run(["ip", *words.split()], check=True)
        self.device = {"slot": slot, "interface": interface}
        self.wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.opened.enter_context(self.wire)
        self.seen["answers"] = 0

    def interface(self, function: Path) -> str:
        end = time.monotonic() + APPEARING
        while not (found := [path.name for path in function.glob("virtio*/net/*")]):
            if time.monotonic() > end:
                raise DeviceError(f"the kernel has no network interface of {function.name}")
            time.sleep(0.01)
        return found[0]

    def round(self, number: int) -> None:
        data = random.Random(number).randbytes(SIZES[number % len(SIZES)])
        wanted = struct.pack("!HH", os.getpid() & 0xFFFF, number & 0xFFFF) + data
        self.wire.sendto(message(ECHO_REQUEST, wanted), (STATION, 0))
        end = time.monotonic() + PATIENCE
        while (left := end - time.monotonic()) > 0:
            self.wire.settimeout(left)
            try:
                packet = self.wire.recv(1 << 16)
            except TimeoutError:
                break
            if packet[20] == ECHO_REPLY and packet[24:28] == wanted[:4]:
                if packet[24:] == wanted:
                    self.seen["answers"] += 1
                else:
                    self.wrong.append(f"ping {number} of {len(data)} bytes was answered with others")
                return
        self.wrong.append(f"ping {number} of {len(data)} bytes had no answer in {PATIENCE:g} s")


def message(kind: int, rest: bytes) -> bytes:
    """An ICMP message (RFC 792), with its checksum."""
    head = bytes((kind, 0))
    padded = head + b"\0\0" + rest + b"\0" * (len(rest) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return head + struct.pack("!H", ~total & 0xFFFF) + rest
