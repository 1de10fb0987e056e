"""Work for an edu device: the kinds `idle`, `registers`, `interrupts` and `dma` of workload.py."""

from __future__ import annotations

import random
import time

from edu import (
    BUFFER,
    CAUSES,
    DMA_ADDRESS_BITS,
    DMA_LENGTH,
    DMA_SOURCE,
    DMA_TARGET,
    FACTORIAL,
    IDENTIFICATION,
    IDENTITY,
    IDS,
    LIVENESS,
    RAISE,
    SELECT_VECTOR,
    TO_MEMORY,
    U32,
    Edu,
)
from guest_pci import PAGE, find_device
from guest_vfio import open_device
from work import Work

KEPT = {DMA_SOURCE: 0x1111_2222, DMA_TARGET: 0x3333_4444, DMA_LENGTH: 0x55}


class EduWork(Work):
    """Interrupts of the kind that is asked for are enabled whatever the work is."""

    edu: Edu

    def begin(self) -> None:
        function = find_device(IDS, self.options.slot)
        device = self.opened.enter_context(open_device(function, self.options.access))
        self.edu = Edu(device)
        self.seen, self.wrong = self.edu.seen, self.edu.wrong
        if self.options.interrupts:
            self.edu.enable_interrupts(self.options.interrupts, self.options.vectors)
        self.device = {"slot": function.slot, "access": device.access, "interrupts": self.edu.kind}

    def finish(self) -> None:
        """No interrupt may have come by itself, and each must still be able to."""
        self.check()
        if not self.edu.vectors:
            return
        self.edu.expect_quiet()
        for vector in self.edu.used:
            self.edu.bar.write(SELECT_VECTOR, vector)
            self.edu.bar.write(RAISE, 1)
            self.edu.expect(f"in the end, the interrupts on vector {vector}", self.edu.interrupted(vector), 1)
            self.edu.acknowledge(1)
        self.edu.expect_quiet()


class Idle(EduWork):
    def round(self, number: int) -> None:
        self.edu.expect("identification", self.edu.bar.read(IDENTIFICATION), IDENTITY)
        time.sleep(0.1)


class Registers(EduWork):
    """`KEPT` is written once and has to stay; the others change with every round."""

    def begin(self) -> None:
        super().begin()
        for register, value in KEPT.items():
            self.edu.bar.write(register, value)
        self.edu.bar.write(FACTORIAL, 12)

    def round(self, number: int) -> None:
        value = number * 0x9E3779B1 & U32
        self.edu.bar.write(LIVENESS, value)
        self.edu.expect(f"liveness of {value:#x}", self.edu.bar.read(LIVENESS), ~value & U32)
        if number % 16 == 0:
            self.check()

    def check(self) -> None:
        for register, value in KEPT.items():
            self.edu.expect(f"register {register:#x}, written long ago,", self.edu.bar.read(register), value)
        self.edu.expect("12!", self.edu.bar.read(FACTORIAL), 479001600)


class Interrupts(EduWork):
    def begin(self) -> None:
        self.options.interrupts = self.options.interrupts or "best"
        super().begin()
        self.raised = dict.fromkeys(self.edu.used, 0)

    def round(self, number: int) -> None:
        vector = self.edu.used[number % len(self.edu.used)]
        causes = number & U32 | 1
        self.edu.bar.write(SELECT_VECTOR, vector)
        self.edu.bar.write(RAISE, causes)
        self.raised[vector] += 1
        self.edu.expect(f"in round {number}, the interrupts on vector {vector}", self.edu.interrupted(vector), 1)
        self.edu.expect(f"in round {number}, the causes", self.edu.bar.read(CAUSES), causes)
        self.edu.acknowledge(causes)

    def finish(self) -> None:
        self.edu.expect_quiet()
        self.check()

    def check(self) -> None:
        counts = {number: self.edu.vectors[number].total for number in self.edu.used}
        self.edu.expect("the interrupts of all vectors", counts, self.raised)
        self.edu.seen["interrupts"] = sum(counts.values())


class Dma(EduWork):
    """The processor writes the first page alone; all others are written by the device, and only read here."""

    def begin(self) -> None:
        super().begin()
        pages = self.options.pages
        self.memory = self.edu.device.dma_memory((pages + 1) * PAGE, address_bits=DMA_ADDRESS_BITS)
        self.written = [-1] * pages  # the round that wrote each page
        self.chance = random.Random(pages)

    def content(self, number: int) -> bytes:
        return random.Random(number).randbytes(PAGE) if number >= 0 else bytes(PAGE)

    def page(self, index: int) -> bytes:
        return bytes(self.memory.bytes[(index + 1) * PAGE : (index + 2) * PAGE])

    def round(self, number: int) -> None:
        index = self.chance.randrange(len(self.written))
        self.memory.bytes[:PAGE] = self.content(number)
        self.edu.transfer(self.memory.address, BUFFER, PAGE, 0)
        self.edu.transfer(BUFFER, self.memory.address + (index + 1) * PAGE, PAGE, TO_MEMORY)
        self.written[index] = number
        self.compare(index)
        self.compare(self.chance.randrange(len(self.written)))

    def compare(self, index: int) -> None:
        number = self.written[index]
        if self.page(index) != self.content(number):
            was = next((f"that of round {old}" for old in range(number) if self.page(index) == self.content(old)), "")
            self.edu.wrong.append(
                f"page {index} has not the content of round {number}, but {was or 'none ever written'}"
            )

    def check(self) -> None:
        for index in range(len(self.written)):
            self.compare(index)
        self.edu.seen["pages"] = sum(number >= 0 for number in self.written)
