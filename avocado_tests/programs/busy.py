#!/usr/bin/env python3
"""In a guest: keep a BusyEdu busy, and reset it meanwhile. Prints one JSON object, as the edu program does.

    busy --slot 01:00.0 reset flr bus    reset by these methods at once, in the middle of each activity in turn
    busy --slot 01:00.0 reset --told --during dma -- flr     the same in one activity, when /tmp/go-on exists
    busy --slot 01:00.0 work storm       work until killed
    busy --slot 01:00.0 watch storm      see what becomes of the work until /tmp/go-on exists

`seen` has, for each activity, what was left of it: see `left_over`. A file /tmp/busy says that the device is at work.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import edu
from guest_pci import (
    BUS_MASTER,
    MEMORY_DECODE,
    MSI,
    MSIX,
    SYSFS,
    Bar,
    DeviceError,
    Interrupt,
    PciFunction,
    SysfsDevice,
    find_device,
)
from guest_vfio import VfioDevice

IDS = "1234:11e8"
STREAM, STORM, HOLD, WORK_DONE = 0xA0, 0xA8, 0xB0, 0xB8
OWN_REGISTERS = {"stream": STREAM, "storm": STORM, "hold": HOLD, "vector": edu.SELECT_VECTOR}
ACTIVITIES = ("idle", "dma", "storm", "held")
LIVENESS = 0x5A5A5A5A
HOLD_MS = 200
PATIENCE = 10.0  # seconds
QUIET = 0.05  # seconds in which what must have ended would show itself
LATE = 1.0  # seconds in which what goes on shows itself, on a busy host too
ON_THEIR_WAY = 8  # interrupts, and more: QEMU, the processor and the driver can each have one left that came before
CANARY = b"\xc5"
BRIDGE_CONTROL, SECONDARY_BUS_RESET = 0x3E, 1 << 6
AT_WORK, GO_ON = Path("/tmp/busy"), Path("/tmp/go-on")


class Busy:
    """The device, driven by VFIO, and what it is busy with."""

    def __init__(self, device: VfioDevice) -> None:
        self.device = device
        self.bar = device.bar(0)
        self.vectors = device.interrupts(MSIX if MSIX in device.config.vectors() else MSI)
        self.memory = device.dma_memory(4096, address_bits=edu.DMA_ADDRESS_BITS)
        self._reader: threading.Thread | None = None
        self._enough = threading.Event()
        self._odd: list[int] = []

    def start(self, activity: str) -> None:
        """Begin, and wait until the device is seen at work."""
        self.bar.write(edu.LIVENESS, LIVENESS)
        self.bar.write(edu.SELECT_VECTOR, 1)
        getattr(self, f"_{activity}")()
        AT_WORK.touch()

    def _idle(self) -> None:
        pass

    def _dma(self) -> None:
        self.memory.bytes[:8] = b"\xff" * 8
        self.bar.write(STREAM, self.memory.address, 8)
        _until(lambda: self.memory.bytes[:8] != b"\xff" * 8, "the stream to begin")

    def _storm(self) -> None:
        self.bar.write(STORM, 1)
        _until(lambda: self.vectors[0].wait(0.1) > 0, "the storm to begin")

    def _held(self) -> None:
        """One read after another, each held by the device, until a reset has ended that."""
        self.bar.write(HOLD, HOLD_MS)
        entered = threading.Event()

        def read() -> None:
            while not self._enough.is_set():
                entered.set()
                if (answer := self.bar.read(HOLD)) != HOLD_MS:
                    self._odd += [answer] if answer else []
                    return

        self._reader = threading.Thread(target=read)
        self._reader.start()
        entered.wait(PATIENCE)

    def finish(self) -> None:
        """Wait for the access that was held: it must have had its value, or that after the reset."""
        self._enough.set()
        if self._reader is not None:
            self._reader.join(PATIENCE)
        if self._odd:
            raise DeviceError(f"a read that was held gave {self._odd[0]:#x}")


# -- the ways to reset -----------------------------------------------------------------------------------------------


def by_the_kernel(method: str) -> Callable[[PciFunction], None]:
    def reset(function: PciFunction) -> None:
        (function.path / "reset_method").write_text(method)
        (function.path / "reset").write_text("1")

    return reset


def by_the_port(function: PciFunction) -> None:
    """A secondary bus reset at the root port, as `setpci BRIDGE_CONTROL` does it, and the function's header back.

    Not by the kernel's method `bus`: it waits a second for a link that QEMU never reports for what it plugged by ACPI,
    and calls the reset failed that it did.
    """
    with (function.path / "config").open("r+b", buffering=0) as config:
        before = [(offset, os.pread(config.fileno(), 4, offset)) for offset in range(0x04, 0x40, 4)]
        with (function.path.resolve().parent / "config").open("r+b", buffering=0) as port:
            control = int.from_bytes(os.pread(port.fileno(), 2, BRIDGE_CONTROL), "little")
            for value in (control | SECONDARY_BUS_RESET, control & ~SECONDARY_BUS_RESET):
                os.pwrite(port.fileno(), value.to_bytes(2, "little"), BRIDGE_CONTROL)
                time.sleep(0.002)
        for offset, data in reversed(before):  # the command register last
            os.pwrite(config.fileno(), data, offset)


def by_the_host(_function: PciFunction) -> None:
    """Somebody outside does it, and tells by a file."""
    _until(GO_ON.exists, "the host to reset the device")
    GO_ON.unlink()


def by_a_new_driver(function: PciFunction) -> None:
    (SYSFS / "drivers/vfio-pci/unbind").write_text(function.slot)
    function.bind("vfio-pci")


def by_removal(function: PciFunction) -> None:
    (function.path / "remove").write_text("1")
    (SYSFS / "rescan").write_text("1")
    _until(function.path.exists, "the function to be found again")


METHODS = {
    "flr": by_the_kernel("flr"),
    "pm": by_the_kernel("pm"),
    "bus": by_the_port,
    "outside": by_the_host,
    "rebind": by_a_new_driver,
    "remove": by_removal,
}
WITHOUT_DRIVER = ("rebind", "remove")
"""Not possible while a program has the device open: it ends in the middle, and leaves the device as it is."""


# -- the commands ----------------------------------------------------------------------------------------------------


def reset(options: argparse.Namespace) -> dict[str, object]:
    """Keep it busy, reset it by every method at once, tell what is left of before, and whether it works again."""
    return {activity: reset_during(activity, options) for activity in options.during}


def reset_during(activity: str, options: argparse.Namespace) -> dict[str, object]:
    function = find_device(IDS, options.slot)
    disturb = reset_without_driver if options.methods[0] in WITHOUT_DRIVER else reset_under_a_driver
    left = {**disturb(activity, function, options), "wrong": driven_again(function)}
    AT_WORK.unlink()
    return left


def reset_under_a_driver(activity: str, function: PciFunction, options: argparse.Namespace) -> dict[str, object]:
    with VfioDevice(function) as device:
        busy = Busy(device)
        busy.start(activity)
        if options.told:
            by_the_host(function)
        at_once(options.methods, function)
        busy.finish()
        device.config.change_command(set_bits=MEMORY_DECODE | BUS_MASTER)
        return left_over(busy.bar, busy.memory.bytes, busy.vectors)


def reset_without_driver(activity: str, function: PciFunction, options: argparse.Namespace) -> dict[str, object]:
    with VfioDevice(function) as device:
        busy = Busy(device)
        busy.start(activity)
        memory = busy.memory.bytes
        busy.finish()
        del busy  # its mapping of the BAR would keep the driver
    at_once(options.methods, function)
    (function.path / "power/control").write_text("on")  # vfio-pci lets a function sleep that nobody uses
    with SysfsDevice(function) as bare:
        return left_over(bare.bar(0), memory, ())


def at_once(methods: Sequence[str], function: PciFunction) -> None:
    failed: list[str] = []

    def run(method: str) -> None:
        try:
            METHODS[method](function)
        except (DeviceError, OSError) as error:
            failed.append(str(error))

    threads = [threading.Thread(target=run, args=(method,)) for method in methods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    if failed:
        raise DeviceError(f"the reset failed: {'; '.join(failed)}")


def left_over(bar: Bar, memory: memoryview, vectors: Sequence[Interrupt]) -> dict[str, object]:
    """Registers, and what still comes: interrupts (whether), bytes written to memory, pieces of work done."""
    registers = {name: bar.read(offset) for name, offset in {**edu.REGISTERS, **OWN_REGISTERS}.items()}
    memory[:] = CANARY * len(memory)
    before = bar.read(WORK_DONE)
    time.sleep(QUIET)
    return {
        "registers": {name: value for name, value in registers.items() if value},
        "interrupts": any(still_come(vector, QUIET) for vector in vectors),
        "bytes_written": len(memory) - bytes(memory).count(CANARY),
        "work": bar.read(WORK_DONE) - before,
    }


def still_come(vector: Interrupt, patience: float) -> bool:
    """Whether interrupts come one after the other, `patience` seconds apart at most: more than were on their way."""
    return all(vector.wait(patience) for _ in range(ON_THEIR_WAY + 1))


def driven_again(function: PciFunction) -> list[str]:
    """What is wrong when a driver uses the device after that: every vector, and DMA both ways."""
    with VfioDevice(function) as device:
        again = edu.Edu(device)
        again.enable_interrupts("msix", 0)
        edu.irq(again, argparse.Namespace(value=0x5A, times=1))
        data = bytes(range(256))
        memory = device.dma_memory(4096, address_bits=edu.DMA_ADDRESS_BITS)
        again.expect("what came back by DMA is right", again.there_and_back(memory, 8, data)[8:264] == data, True)
        return again.wrong


def work(options: argparse.Namespace) -> dict[str, object]:
    """Keep it busy until this program is killed."""
    with VfioDevice(find_device(IDS, options.slot)) as device:
        Busy(device).start(options.activity)
        while True:
            time.sleep(60)


def watch(options: argparse.Namespace) -> dict[str, object]:
    """Use the device until told to stop; what it answered, what of its own work goes on, and the longest access."""
    with VfioDevice(find_device(IDS, options.slot)) as device:
        busy = Busy(device)
        busy.start(options.activity if options.activity in ACTIVITIES else "idle")
        answers, longest = use_until_told(busy.bar, options.activity)
        AT_WORK.unlink()
        began = time.monotonic()
        answers.append(busy.bar.read(edu.LIVENESS))
        longest = max(longest, time.monotonic() - began)
        before = bytes(busy.memory.bytes[:8])
        dma = _within(LATE if options.activity == "dma" else QUIET, lambda: bytes(busy.memory.bytes[:8]) != before)
        interrupts = still_come(busy.vectors[0], LATE if options.activity == "storm" else 0)
        return {"answers": sorted(set(answers)), "longest": round(longest, 3), "dma": dma, "interrupts": interrupts}


def use_until_told(bar: Bar, activity: str) -> tuple[list[int], float]:
    """Read or write registers without a pause (or do nothing): what was read, and the longest access in seconds."""
    answers: list[int] = []
    longest = 0.0
    while not GO_ON.exists():
        began = time.monotonic()
        if activity == "read":
            answers.append(bar.read(edu.LIVENESS))
        elif activity == "burst":
            for _ in range(64):
                bar.write(edu.LIVENESS, LIVENESS)
        else:
            time.sleep(0.002)
            continue
        longest = max(longest, time.monotonic() - began)
    GO_ON.unlink()
    return answers, longest


def left(options: argparse.Namespace) -> dict[str, object]:
    """What there is of an activity before this guest was booted, and whether the device works."""
    function = find_device(IDS, options.slot)
    with SysfsDevice(function) as bare:
        found = left_over(bare.bar(0), memoryview(bytearray(64)), ())
    return {**found, "wrong": driven_again(function)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slot", required=True)
    commands = parser.add_subparsers(required=True)
    for command in (reset, work, watch, left):
        commands.add_parser(command.__name__, help=command.__doc__).set_defaults(command=command)
    commands.choices["reset"].add_argument("methods", nargs="+", choices=METHODS)
    commands.choices["reset"].add_argument("--during", nargs="+", choices=ACTIVITIES, default=ACTIVITIES)
    commands.choices["reset"].add_argument("--told", action="store_true", help="wait for /tmp/go-on before each")
    commands.choices["work"].add_argument("activity", choices=ACTIVITIES)
    commands.choices["watch"].add_argument("activity", choices=(*ACTIVITIES, "read", "burst"))
    options = parser.parse_args()
    started = time.monotonic()
    report: dict[str, object] = {"ok": False}
    try:
        report |= {"seen": options.command(options), "ok": True}
    except (DeviceError, OSError) as error:
        report["error"] = str(error)
    report["seconds"] = round(time.monotonic() - started, 3)
    print(json.dumps(report))
    return 0 if report["ok"] else 1


def _until(happened: Callable[[], bool], what: str) -> None:
    if not _within(PATIENCE, happened):
        raise DeviceError(f"waited {PATIENCE:.0f} s for {what}")


def _within(seconds: float, happened: Callable[[], bool]) -> bool:
    """Whether it happens within so many seconds."""
    deadline = time.monotonic() + seconds
    while not (done := happened()) and time.monotonic() < deadline:
        time.sleep(0.001)
    return done


if __name__ == "__main__":
    sys.exit(main())
