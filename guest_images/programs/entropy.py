#!/usr/bin/env python3
"""Exercise a virtio entropy source with the kernel's own driver, and report in JSON, in the form of edu.py.

entropy driver   the driver has the device, and /dev/hwrng can be given it
entropy read     reads 4 KiB of it: bytes that are all alike, or repeat themselves, are wrong
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

HWRNG = Path("/sys/class/misc/hw_random")
SIZE = 4096
PIECE = 64


def source_of(slot: str) -> str:
    """The name that the kernel's list of sources has for the device: virtio_rng.1. Raises OSError."""
    slot = slot if slot.count(":") == 2 else f"0000:{slot}"
    [virtio] = [path.name for path in Path("/sys/bus/pci/devices", slot).glob("virtio*")] or [""]
    driver = Path("/sys/bus/virtio/devices", virtio, "driver")
    if not virtio or driver.resolve().name != "virtio_rng":
        raise OSError(f"the device at {slot} has not the driver virtio_rng")
    # The driver numbers its sources in the order in which it found them, which is that of the bus's numbers.
    devices = sorted(path.name for path in driver.glob("virtio*"))
    sources = [name for name in (HWRNG / "rng_available").read_text().split() if name.startswith("virtio_rng.")]
    sources.sort(key=lambda name: int(name.rpartition(".")[2]))
    devices.sort(key=lambda name: int(name.removeprefix("virtio")))
    return sources[devices.index(virtio)]


def read(source: str) -> bytes:
    (HWRNG / "rng_current").write_text(source)
    with open("/dev/hwrng", "rb", buffering=0) as device:
        device.read(PIECE * 4)  # what another source had given before
        data = b""
        while len(data) < SIZE:
            data += device.read(SIZE - len(data))
    return data


def main() -> int:
    parser = argparse.ArgumentParser(prog="entropy", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--slot", required=True, help="where the device is")
    parser.add_argument("part", choices=["driver", "read"])
    options = parser.parse_args()
    began = time.monotonic()
    report: dict[str, object] = {"command": f"entropy {options.part}", "ok": False, "seen": {}, "wrong": []}
    try:
        source = source_of(options.slot)
        report["seen"] = {"source": source}
        if options.part == "read":
            data = read(source)
            pieces = {data[at : at + PIECE] for at in range(0, SIZE, PIECE)}
            report["seen"] = {"bytes": len(data), "different": len(set(data))}
            if len(set(data)) < 200 or len(pieces) < SIZE // PIECE:
                report["wrong"] = [f"{len(set(data))} different bytes and {len(pieces)} pieces of {SIZE // PIECE}"]
        report["ok"] = not report["wrong"]
    except OSError as error:
        report["error"] = str(error)
    report["seconds"] = round(time.monotonic() - began, 3)
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
