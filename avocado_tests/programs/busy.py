#!/usr/bin/env python3
"""In a guest: keep a BusyEdu busy, and reset it meanwhile. Prints one JSON object, as the edu program does.

    busy --slot 01:00.0 work storm           work until killed; "busy" on a line of its own says that it has begun
    busy --slot 01:00.0 reset dma flr bus    reset by these methods at the same time, and judge what is left
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable

from edu import DMA_ADDRESS_BITS, LIVENESS, REGISTERS, SELECT_VECTOR, U32
from guest_pci import DeviceError, DmaMemory, find_device
from guest_vfio import VfioDevice

IDS = "1234:11e8"
STREAM, STORM, HOLD, WORK_DONE = 0xA0, 0xA8, 0xB0, 0xB8
OWN_REGISTERS = {"stream": STREAM, "storm": STORM, "hold": HOLD, "vector": SELECT_VECTOR}
HOLD_MS = 300
PATIENCE = 10.0  # seconds
QUIET = 0.1  # seconds in which what must have ended would show itself
CANARY = b"\xc5"


class Busy:
    """The device, driven by VFIO, and what it is busy with."""

    def __init__(self, device: VfioDevice) -> None:
        self.device = device
        self.bar = device.bar(0)
        kinds = device.config.vectors()
        self.vectors = device.interrupts("msix" if "msix" in kinds else "msi")
        self.memory: DmaMemory = device.dma_memory(4096, address_bits=DMA_ADDRESS_BITS)
        self.held: list[int] = []
        self._reader: threading.Thread | None = None

    def start(self, activity: str) -> None:
        """Begin, and wait until the device is seen at work."""
        self.bar.write(LIVENESS, 0x5A5A5A5A)
        self.bar.write(SELECT_VECTOR, 1)
        getattr(self, f"_{activity}")()

    def _idle(self) -> None:
        pass

    def _dma(self) -> None:
        self.memory.bytes[:8] = b"\xff" * 8
        self.bar.write(STREAM, self.memory.address, 8)
        self._until(lambda: self.memory.bytes[:8] != b"\xff" * 8, "the stream")

    def _storm(self) -> None:
        self.bar.write(STORM, 1)
        self._until(lambda: self.vectors[0].wait(0.1) > 0, "the storm")

    def _held(self) -> None:
        self.bar.write(HOLD, HOLD_MS)
        entered = threading.Event()

        def read() -> None:
            entered.set()
            self.held.append(self.bar.read(HOLD))

        self._reader = threading.Thread(target=read)
        self._reader.start()
        entered.wait(PATIENCE)

    def end(self) -> None:
        if self._reader is not None:
            self._reader.join(PATIENCE)

    def _until(self, happened: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happened():
            if time.monotonic() > deadline:
                raise DeviceError(f"{what} did not begin")


def work(busy: Busy, options: argparse.Namespace) -> dict[str, object]:
    """Keep it busy until this program is killed."""
    busy.start(options.activity)
    print("busy", flush=True)
    while True:
        time.sleep(60)


def reset(busy: Busy, options: argparse.Namespace) -> dict[str, object]:
    """Keep it busy, reset it by every method at once, and tell what is left of before."""
    busy.start(options.activity)
    path = busy.device.function.path
    resets = [threading.Thread(target=reset_by, args=(path, method)) for method in options.methods]
    for thread in resets:
        thread.start()
    for thread in resets:
        thread.join(PATIENCE)
    busy.end()
    return left_over(busy)


def reset_by(path: object, method: str) -> None:
    """One write for the method and one for the reset: two at once may swap methods, and are two resets all the same."""
    with open(f"{path}/reset_method", "w") as chosen:
        chosen.write(method)
    with open(f"{path}/reset", "w") as trigger:
        trigger.write("1")


def left_over(busy: Busy) -> dict[str, object]:
    """Registers, and what still comes: interrupts, writes to memory, pieces of work. All must be 0 but the first."""
    busy.device.config.change_command(set_bits=0x6)
    names = {**REGISTERS, **OWN_REGISTERS}
    registers = {name: busy.bar.read(offset) for name, offset in names.items()}
    for vector in busy.vectors:
        vector.wait(0)  # those that came before
    busy.memory.bytes[:] = CANARY * busy.memory.size
    before = busy.bar.read(WORK_DONE)
    time.sleep(QUIET)
    return {
        "registers": registers,
        "interrupts": sum(vector.wait(0) for vector in busy.vectors),
        "bytes_written": busy.memory.size - bytes(busy.memory.bytes).count(CANARY),
        "work": (busy.bar.read(WORK_DONE) - before) & U32,
        "held": busy.held,
    }


COMMANDS = {"work": work, "reset": reset}
ACTIVITIES = ("idle", "dma", "storm", "held")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slot", required=True)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("activity", choices=ACTIVITIES)
    parser.add_argument("methods", nargs="*", choices=("flr", "pm", "bus"))
    options = parser.parse_args()
    started = time.monotonic()
    report: dict[str, object] = {"command": options.command, "ok": False}
    try:
        with VfioDevice(find_device(IDS, options.slot)) as device:
            report["seen"] = COMMANDS[options.command](Busy(device), options)
            report["ok"] = True
    except (DeviceError, OSError) as error:
        report["error"] = str(error)
    report["seconds"] = round(time.monotonic() - started, 3)
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
