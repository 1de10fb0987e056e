#!/usr/bin/env python3
"""Exercise an edu device from a guest: QEMU's own, or one that is served over vfio-user.

Prints one JSON object. `seen` is what the device answered: the same for every right edu, so that two can be compared;
`wrong` lists what it should have answered; `device` and `seconds` are about this run. Exits 0 when nothing is wrong, 1
otherwise, also when the device cannot be driven at all (`error`).

    edu identify             edu --interrupts msix irq 0x5a --times 3
    edu factorial 5 12       edu --slot 01:00.0 dma

Registers: docs/specs/edu.rst of QEMU. SELECT_VECTOR is an extension of ours, which QEMU's device ignores.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from guest_pci import INTX, MSI, MSIX, DeviceError, DmaMemory, Interrupt, find_device
from guest_vfio import ACCESS, Device, open_device

IDS = "1234:11e8"
IDENTITY = 0x010000ED
DMA_ADDRESS_BITS = 28
BUFFER, BUFFER_SIZE = 0x40000, 4096
U32 = 0xFFFFFFFF

IDENTIFICATION, LIVENESS, FACTORIAL = 0x00, 0x04, 0x08
STATUS, CAUSES, SELECT_VECTOR, RAISE, ACKNOWLEDGE = 0x20, 0x24, 0x28, 0x60, 0x64
DMA_SOURCE, DMA_TARGET, DMA_LENGTH, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
REGISTERS = {
    "identification": IDENTIFICATION,
    "liveness": LIVENESS,
    "factorial": FACTORIAL,
    "status": STATUS,
    "causes": CAUSES,
    "dma_source": DMA_SOURCE,
    "dma_target": DMA_TARGET,
    "dma_length": DMA_LENGTH,
    "dma_command": DMA_COMMAND,
}
# What each access can bring, the best first
KINDS = {"vfio": [MSIX, MSI, INTX], "uio": [INTX], "sysfs": []}
COMPUTING, INTERRUPT_AFTER = 0x01, 0x80  # bits of STATUS
FACTORIAL_DONE, DMA_DONE = 0x001, 0x100  # bits of CAUSES that the device itself sets
RUN, TO_MEMORY, INTERRUPT_AFTER_DMA = 0x1, 0x2, 0x4  # bits of DMA_COMMAND

PATIENCE = 10.0  # seconds for anything that the device does; a guest under TCG is slow, and so may a server be
QUIET = 0.05  # seconds in which an interrupt that must not come would have come
POLL = 0.002  # seconds

LIVENESS_VALUES = [0, 1, 0x5A5A5A5A, 0xA5A5A5A5, 0x12345678, 0x80000000, U32]
FACTORIALS = [0, 1, 2, 5, 12, 13, 20, 33, 34, 40]
# Offset in the memory, and length: whole pages, odd pieces, one byte, and pieces across borders of pages of the memory
TRANSFERS = [(0, 4096), (4096, 4095), (4095, 2), (4000, 200), (8191, 1), (2048, 4096), (12287, 4096), (5, 3)]
MEMORY_SIZE = 5 * 4096


class Edu:
    """The device: its registers by name, and the checks as methods that fill `seen` and `wrong`."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.bar = device.bar(0)
        self.seen: dict[str, object] = {}
        self.wrong: list[str] = []
        self.kind = ""
        self.vectors: Sequence[Interrupt] = []
        self.used = range(0)

    def expect(self, what: str, value: object, expected: object) -> None:
        if value != expected:
            self.wrong.append(f"{what} is {_hex(value)}, not {_hex(expected)}")

    # -- interrupts ---------------------------------------------------------------------------------------------------

    def enable_interrupts(self, kind: str, limit: int) -> None:
        """Enable interrupts of `kind`, or of the best that device and access have; use `limit` vectors of them."""
        self.bar.write(ACKNOWLEDGE, U32)  # a cause left over would interrupt as soon as it can
        self.kind = self.best_kind() if kind == "best" else kind
        self.vectors = self.device.interrupts(self.kind)
        self.used = range(min(limit, len(self.vectors)) if limit else len(self.vectors))

    def best_kind(self) -> str:
        offered = self.device.config.vectors()
        kinds = [kind for kind in KINDS[self.device.access] if kind in offered]
        if not kinds:
            kinds_offered = ", ".join(offered) or "none"
            raise DeviceError(
                f"no interrupts by {self.device.access}: of their kinds, the device offers {kinds_offered}"
            )
        return kinds[0]

    def interrupted(self, vector: int) -> int:
        return self.vectors[vector].wait(PATIENCE)

    def acknowledge(self, causes: int) -> None:
        """Acknowledge, and let a line interrupt again: the kernel masked it when it came."""
        self.bar.write(ACKNOWLEDGE, causes)
        if self.kind == INTX:
            self.vectors[0].unmask()

    def expect_quiet(self) -> None:
        """No vector may have anything left to say."""
        deadline = time.monotonic() + QUIET
        for number, vector in enumerate(self.vectors):
            more = vector.wait(max(0.0, deadline - time.monotonic()))
            self.expect(f"the number of stray interrupts on vector {number}", more, 0)

    # -- DMA ----------------------------------------------------------------------------------------------------------

    def transfer(self, source: int, target: int, length: int, command: int) -> None:
        """Run one DMA transfer to its end."""
        self.bar.write(DMA_SOURCE, source, 8)
        self.bar.write(DMA_TARGET, target, 8)
        self.bar.write(DMA_LENGTH, length, 8)
        self.bar.write(DMA_COMMAND, command | RUN)
        self.until_clear(DMA_COMMAND, RUN, "the DMA transfer")

    def until_clear(self, register: int, bit: int, what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.bar.read(register) & bit:
            if time.monotonic() > deadline:
                raise DeviceError(f"{what} did not end within {PATIENCE:.0f} s")
            time.sleep(POLL)

    def there_and_back(self, memory: DmaMemory, offset: int, data: bytes) -> bytes:
        """Put `data` at `offset` of `memory`, DMA it into the device, wipe it, and DMA it back; what came."""
        memory.bytes[:] = bytes(memory.size)
        memory.bytes[offset : offset + len(data)] = data
        self.transfer(memory.address + offset, BUFFER, len(data), 0)
        memory.bytes[:] = b"\xee" * memory.size
        self.transfer(BUFFER, memory.address + offset, len(data), TO_MEMORY)
        return bytes(memory.bytes)


# -- the subcommands -------------------------------------------------------------------------------------------------


def identify(edu: Edu, _options: argparse.Namespace) -> None:
    """Ids, the BAR's size, the interrupts on offer, and the identification register."""
    function = edu.device.function
    edu.seen["ids"] = function.ids
    edu.seen["revision"] = function.number("revision")
    edu.seen["class"] = f"{function.number('class'):06x}"
    edu.seen["bar0"] = function.bar_size(0)
    edu.seen["identification"] = f"{edu.bar.read(IDENTIFICATION):#010x}"
    edu.expect("identification", edu.bar.read(IDENTIFICATION), IDENTITY)
    edu.expect("the size of BAR 0", function.bar_size(0), 1 << 20)


def liveness(edu: Edu, options: argparse.Namespace) -> None:
    """Every value comes back inverted."""
    answers = {}
    for value in options.values or LIVENESS_VALUES:
        edu.bar.write(LIVENESS, value)
        answers[f"{value:#010x}"] = f"{edu.bar.read(LIVENESS):#010x}"
        edu.expect(f"liveness of {value:#x}", edu.bar.read(LIVENESS), ~value & U32)
    edu.seen["inverted"] = answers


def factorial(edu: Edu, options: argparse.Namespace) -> None:
    """Factorials modulo 2**32; with --interrupt the device must tell when it has one."""
    answers = {}
    edu.bar.write(STATUS, INTERRUPT_AFTER if options.interrupt else 0)
    for number in options.numbers or FACTORIALS:
        edu.bar.write(FACTORIAL, number)
        if options.interrupt:
            edu.expect(f"the number of interrupts after {number}!", edu.interrupted(0), 1)
            edu.expect(f"the cause after {number}!", edu.bar.read(CAUSES), FACTORIAL_DONE)
        edu.until_clear(STATUS, COMPUTING, f"{number}!")
        answers[number] = edu.bar.read(FACTORIAL)
        if options.interrupt:
            edu.acknowledge(FACTORIAL_DONE)
        edu.expect(f"{number}!", answers[number], math.factorial(number) & U32)
    edu.bar.write(STATUS, 0)
    edu.seen["factorials"] = answers


def irq(edu: Edu, options: argparse.Namespace) -> None:
    """Raise interrupts on every vector in turn: each must come there, as often as raised, and nowhere else."""
    for number in edu.used:
        edu.bar.write(SELECT_VECTOR, number)
        for _ in range(options.times):
            edu.bar.write(RAISE, options.value)
            edu.expect(f"the number of interrupts on vector {number}", edu.interrupted(number), 1)
            edu.expect("the cause", edu.bar.read(CAUSES), options.value)
            edu.acknowledge(options.value)
            edu.expect("the cause after acknowledging", edu.bar.read(CAUSES), 0)
    edu.bar.write(SELECT_VECTOR, 0)
    edu.expect_quiet()
    edu.seen["counts"] = {number: edu.vectors[number].total for number in edu.used}


def intx(edu: Edu, options: argparse.Namespace) -> None:
    """A level: it interrupts again until acknowledged, shows in the status register, and then is silent."""
    config = edu.device.config
    [line] = edu.vectors
    levels = []
    for _ in range(options.times):
        edu.bar.write(RAISE, options.value)
        edu.expect("the number of interrupts", line.wait(PATIENCE), 1)
        levels.append(config.intx_pending)
        line.unmask()  # nothing was acknowledged: it must come again
        edu.expect("the number of interrupts of a line that is still active", line.wait(PATIENCE), 1)
        edu.bar.write(ACKNOWLEDGE, options.value)
        levels.append(config.intx_pending)
        line.unmask()
        edu.expect_quiet()
    edu.seen["levels"] = levels
    edu.seen["count"] = line.total
    edu.expect("the level after raise and acknowledge", levels, [True, False] * options.times)


def dma(edu: Edu, options: argparse.Namespace) -> None:
    """Patterns into the device and back, over page borders too, touching nothing beside; then one with interrupt."""
    memory = edu.device.dma_memory(MEMORY_SIZE, address_bits=DMA_ADDRESS_BITS)
    digests = {}
    for offset, length in TRANSFERS:
        data = random.Random(offset).randbytes(length)
        came = edu.there_and_back(memory, offset, data)
        digests[f"{offset}+{length}"] = hashlib.sha256(came[offset : offset + length]).hexdigest()[:16]
        name = f"DMA of {length} bytes at {offset}"
        edu.expect(f"{name}: what came back is right", came[offset : offset + length] == data, True)
        untouched = came[:offset] + came[offset + length :]
        edu.expect(f"{name}: memory beside it is untouched", untouched.count(0xEE), len(untouched))
    edu.seen["transfers"] = digests
    if edu.vectors:
        edu.transfer(BUFFER, memory.address, 8, TO_MEMORY | INTERRUPT_AFTER_DMA)
        edu.expect("the number of interrupts after DMA", edu.interrupted(0), 1)
        edu.expect("the cause after DMA", edu.bar.read(CAUSES), DMA_DONE)
        edu.acknowledge(DMA_DONE)
        edu.seen["interrupts"] = edu.vectors[0].total


def stress(edu: Edu, options: argparse.Namespace) -> None:
    """A long random mixture of everything, the same for the same --seed."""
    memory = edu.device.dma_memory(MEMORY_SIZE, address_bits=DMA_ADDRESS_BITS)
    chance = random.Random(options.seed)
    answers = hashlib.sha256()
    done = {"liveness": 0, "factorial": 0, "irq": 0, "dma": 0}
    for _ in range(options.rounds):
        match chance.choices(list(done), weights=[10, 5, 4, 1])[0]:
            case "liveness" as what:
                value = chance.getrandbits(32)
                edu.bar.write(LIVENESS, value)
                answer = edu.bar.read(LIVENESS)
                edu.expect(f"liveness of {value:#x}", answer, ~value & U32)
            case "factorial" as what:
                value = chance.randrange(40)
                edu.bar.write(FACTORIAL, value)
                edu.until_clear(STATUS, COMPUTING, f"{value}!")
                answer = edu.bar.read(FACTORIAL)
                edu.expect(f"{value}!", answer, math.factorial(value) & U32)
            case "irq" as what:
                number = chance.randrange(1 << 16) % len(edu.used)
                answer = chance.getrandbits(32) | 1
                edu.bar.write(SELECT_VECTOR, number)
                edu.bar.write(RAISE, answer)
                edu.expect(f"the number of interrupts on vector {number}", edu.interrupted(number), 1)
                edu.expect("the cause", edu.bar.read(CAUSES), answer)
                edu.acknowledge(answer)
            case what:
                length, offset = chance.randrange(1, 4097), chance.randrange(MEMORY_SIZE - 4096)
                data = chance.randbytes(length)
                came = edu.there_and_back(memory, offset, data)[offset : offset + length]
                edu.expect(f"DMA of {length} bytes at {offset}: what came back is right", came == data, True)
                answer = int.from_bytes(hashlib.sha256(came).digest()[:4], "big")
        answers.update(f"{what} {answer};".encode())
        done[what] += 1
        if edu.wrong:
            break
    edu.expect_quiet()
    edu.seen["done"] = done
    edu.seen["answers"] = answers.hexdigest()[:16]


def registers(edu: Edu, _options: argparse.Namespace) -> None:
    """All registers as they are, changing nothing: to compare before and after."""
    edu.seen["registers"] = {name: f"{edu.bar.read(offset):#x}" for name, offset in REGISTERS.items()}


def reset(edu: Edu, options: argparse.Namespace) -> None:
    """Write a register, reset the function, and tell what is left: nothing, except in QEMU's own device."""
    edu.bar.write(LIVENESS, 0x5A5A5A5A)
    edu.device.reset()
    identify(edu, options)
    registers(edu, options)
    edu.seen["cleared"] = edu.bar.read(LIVENESS) == 0


Check = Callable[[Edu, argparse.Namespace], None]
# name: (what to do, the access when none is chosen, the interrupts that it needs)
COMMANDS: dict[str, tuple[Check, str, str]] = {
    "identify": (identify, "sysfs", ""),
    "registers": (registers, "sysfs", ""),
    "liveness": (liveness, "sysfs", ""),
    "factorial": (factorial, "sysfs", ""),
    "factorial --interrupt": (factorial, "auto", "best"),
    "irq": (irq, "auto", "best"),
    "intx": (intx, "auto", INTX),
    "dma": (dma, "auto", "best"),
    "stress": (stress, "auto", "best"),
    "reset": (reset, "sysfs", ""),
}


USUAL = ("--slot", "01:00.0", "liveness")
"""Arguments, for an agent to parse once for all of its forks."""


@functools.cache
def parser() -> argparse.ArgumentParser:
    summary, _, more = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        prog="edu", description=summary, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--slot", default="", help="where the device is, 0000:01:00.0; needed when there are several")
    made.add_argument("--access", choices=["auto", *ACCESS], default="auto", help="the way to the device")
    made.add_argument("--interrupts", choices=["best", MSIX, MSI, INTX], help="the kind to use")
    made.add_argument("--vectors", type=int, default=0, metavar="N", help="use no more than the first N vectors")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {
        name: commands.add_parser(name, help=check.__doc__, description=check.__doc__)
        for name, (check, _access, _interrupts) in COMMANDS.items()
        if " " not in name
    }
    parsers["liveness"].add_argument("values", nargs="*", type=_number)
    parsers["factorial"].add_argument("numbers", nargs="*", type=_number)
    parsers["factorial"].add_argument("--interrupt", action="store_true", help="wait for the device's interrupt")
    for name in ("irq", "intx"):
        parsers[name].add_argument("value", nargs="?", type=_number, default=0x5A, help="causes to raise")
        parsers[name].add_argument("--times", type=int, default=1, help="how often, on each vector")
    parsers["stress"].add_argument("--rounds", type=int, default=500)
    parsers["stress"].add_argument("--seed", type=int, default=1)
    return made


def main() -> int:
    options = parser().parse_args()
    variant = " --interrupt" if getattr(options, "interrupt", False) else ""
    check, access, interrupts = COMMANDS[options.command + variant]
    report: dict[str, object] = {"command": options.command, "ok": False}
    started = time.monotonic()
    with ExitStack() as stack:
        try:
            function = find_device(IDS, options.slot)
            device: Device = open_device(function, access if options.access == "auto" else options.access)
            stack.enter_context(device)
            edu = Edu(device)
            about: dict[str, object] = {"slot": function.slot, "access": device.access}
            report["device"] = about
            if interrupts:
                edu.enable_interrupts(options.interrupts or interrupts, options.vectors)
                about |= {"interrupts": edu.kind, "vectors": len(edu.vectors)}
            check(edu, options)
            report |= {"ok": not edu.wrong, "seen": edu.seen, "wrong": edu.wrong}
        except (DeviceError, OSError) as error:
            report["error"] = str(error)
    report["seconds"] = round(time.monotonic() - started, 3)
    print(json.dumps(report))
    return 0 if report["ok"] else 1


def _number(text: str) -> int:
    return int(text, 0)


def _hex(value: object) -> str:
    return f"{value:#x}" if type(value) is int and value > 9 else str(value)


if __name__ == "__main__":
    sys.exit(main())
