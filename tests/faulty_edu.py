"""Edu devices with a bug each, for what finds bugs."""

from __future__ import annotations

import os
from math import factorial

from userdev_servers.edu import TO_RAM, Edu
from vfio_user.device import register

MAGIC = 0xBAD


class WrongAnswer(Edu):
    """The factorial of 5 is wrong once an interrupt of cause 0x3 has been raised."""

    @register(bar=0, offset=0x08, width=4)
    def compute(self, value: int) -> None:  # type: ignore[override]
        self.result = factorial(value) if value < 13 else 0
        if value == 5 and self.interrupt_status & 0x3 == 0x3:
            self.result = 121

    @compute.reader
    def result_register(self) -> int:
        return self.result


class Crashing(Edu):
    """Ends where an interrupt of cause MAGIC is raised."""

    def interrupt_guest(self, causes: int) -> None:
        if causes == MAGIC:
            os._exit(3)
        super().interrupt_guest(causes)


class Corrupting(Edu):
    """What it has read from memory by DMA is not what was there."""

    def run_dma(self) -> None:
        command = self.command
        super().run_dma()
        if not command & TO_RAM:
            self.buffer[0] ^= 0xFF


class Silent(Edu):
    """Raises no interrupts."""

    def interrupt_guest(self, causes: int) -> None:
        self.interrupt_status |= causes
