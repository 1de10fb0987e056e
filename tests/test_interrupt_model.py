"""Interrupts walked at random beside a model of a few lines: what fires, what waits, what is shown as pending."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import closing

from tests.cases import for_each
from tests.device_kit import BOOL, CONFIG, EVENTFD, INTX, MASK, MSI, MSIX, NONE, TRIGGER, UNMASK, Ringer
from vfio_user import PciDevice
from vfio_user.device import function_of
from vfio_user.testing import RecordingLink, attached, find_capability, read_register, set_irqs, write_register
from vfio_user.wire.constants import IrqSetFlags

VECTORS = 4
ENABLE, FUNCTION_MASK = 1 << 15, 1 << 14
STATUS_INTERRUPT = 1 << 3
COMMAND_INTX_DISABLE = 1 << 10
PBA = 0x800


class Messages:
    """MSI or MSI-X: of each vector whether it is wired, masked by SET_IRQS or in its registers, and pending."""

    def __init__(self, device: PciDevice, index: int) -> None:
        self.device = device
        self.index = index
        self.eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(VECTORS)]
        self.capability = find_capability(device, 0x11 if index == MSIX else 0x05)
        self.enabled = False
        self.wired: set[int] = set()
        self.masked: set[int] = set()
        self.masked_in_registers: set[int] = set()
        self.all_masked = False
        self.table_used = False
        self.pending: set[int] = set()
        self.fired = [0] * VECTORS

    # what is done to both

    def wire(self, start: int, count: int, noise: random.Random) -> None:
        copies = [os.dup(fd) for fd in self.eventfds[start : start + count]]
        self.ask(start, count, TRIGGER, EVENTFD, fds=copies)
        self.wired |= set(range(start, start + count))

    def unwire(self, start: int, count: int, noise: random.Random) -> None:
        self.ask(start, count, TRIGGER, EVENTFD)
        self.wired -= set(range(start, start + count))

    def disable(self, start: int, count: int, noise: random.Random) -> None:
        self.ask(0, 0, TRIGGER, NONE)
        self.wired.clear()
        self.masked.clear()

    def mask(self, start: int, count: int, noise: random.Random) -> None:
        chosen = self.some(MASK, start, count, noise)
        self.masked |= chosen

    def unmask(self, start: int, count: int, noise: random.Random) -> None:
        chosen = self.some(UNMASK, start, count, noise)
        self.masked -= chosen

    def client_triggers(self, start: int, count: int, noise: random.Random) -> None:
        """SET_IRQS with TRIGGER signals what is wired, whether it is masked or not, and nothing waits."""
        for vector in self.some(TRIGGER, start, count, noise):
            self.fired[vector] += vector in self.wired

    def device_triggers(self, start: int, count: int, noise: random.Random) -> None:
        for vector in range(start, start + count):
            self.device.interrupts.trigger(vector)
            if self.active:
                self.pending.add(vector)
                self.deliver()

    def switch(self, start: int, count: int, noise: random.Random) -> None:
        """Enable or disable in configuration space; for MSI-X with the mask of the function."""
        self.enabled = noise.random() < 0.7
        self.all_masked = self.index == MSIX and noise.random() < 0.3
        if self.index == MSIX:
            self.control(ENABLE * self.enabled | FUNCTION_MASK * self.all_masked)
        else:
            self.control(1 * self.enabled | 2 << 4)  # all four vectors

    def mask_in_registers(self, start: int, count: int, noise: random.Random) -> None:
        masked = noise.random() < 0.5
        vectors = set(range(start, start + count))
        self.masked_in_registers = self.masked_in_registers | vectors if masked else self.masked_in_registers - vectors
        if self.index == MSIX:
            if not self.table_used:
                self.masked_in_registers = set(range(VECTORS)) - (set() if masked else vectors)
                self.table_used = True
            for vector in vectors:  # one write at a time, as a driver does
                write_register(self.device, 0, 16 * vector + 12, 4, masked)
                self.settle_to(vector, masked)
        else:
            bits = sum(1 << vector for vector in self.masked_in_registers)
            write_register(self.device, CONFIG, self.capability + 16, 4, bits)

    def settle_to(self, vector: int, masked: bool) -> None:
        """Nothing else: the model delivers after every step anyway, and masking delivers nothing."""

    # the model

    @property
    def active(self) -> bool:
        return self.enabled or bool(self.wired)

    def deliver(self) -> None:
        if not self.active:
            self.pending.clear()
        for vector in sorted(self.pending):
            masked = vector in self.masked or vector in self.masked_in_registers or self.all_masked
            if vector in self.wired and not masked:
                self.pending.discard(vector)
                self.fired[vector] += 1

    # how it is done

    def ask(self, start: int, count: int, action: IrqSetFlags, data: IrqSetFlags, **rest: object) -> None:
        set_irqs(self.device, self.index, start, count, action, data, **rest)  # type: ignore[arg-type]

    def some(self, action: IrqSetFlags, start: int, count: int, noise: random.Random) -> set[int]:
        """Act on a range, or on those of it whose byte is 1."""
        if noise.random() < 0.5:
            self.ask(start, count, action, NONE)
            return set(range(start, start + count))
        bools = bytes(noise.choice((0, 1)) for _ in range(count))
        self.ask(start, count, action, BOOL, bools=bools)
        return {start + place for place, chosen in enumerate(bools) if chosen}

    def control(self, value: int) -> None:
        write_register(self.device, CONFIG, self.capability + 2, 2, value)

    def shown_pending(self) -> set[int]:
        if self.index == MSIX:
            bits = read_register(self.device, 0, PBA, 8)
        else:
            bits = read_register(self.device, CONFIG, self.capability + 20, 4)
        return {vector for vector in range(VECTORS) if bits >> vector & 1}

    def take(self) -> list[int]:
        counts = []
        for fd in self.eventfds:
            try:
                counts.append(os.eventfd_read(fd))
            except BlockingIOError:
                counts.append(0)
        return counts

    def close(self) -> None:
        for fd in self.eventfds:
            os.close(fd)


Step = Callable[[Messages, int, int, random.Random], None]
STEPS: list[Step] = [
    Messages.wire,
    Messages.unwire,
    Messages.disable,
    Messages.mask,
    Messages.unmask,
    Messages.client_triggers,
    Messages.device_triggers,
    Messages.device_triggers,
    Messages.device_triggers,
    Messages.switch,
    Messages.mask_in_registers,
]


@for_each([MSI, MSIX], range(12))
def test_message_interrupts_are_as_their_model_after_every_step(index: int, seed: int) -> None:
    with closing(Ringer()) as device:
        noise = random.Random(seed)
        name = "msix" if index == MSIX else "msi"
        with attached(device):
            model = Messages(device, index)
            for number in range(200):
                step = noise.choice(STEPS)
                start = noise.randrange(VECTORS)
                step(model, start, noise.randint(1, VECTORS - start), noise)
                model.deliver()
                told = f"step {number}: {step.__name__}"
                assert model.take() == model.fired, told
                model.fired = [0] * VECTORS
                assert model.shown_pending() == model.pending == set(device.interrupts.pending), told
                assert device.interrupts.active == (name if model.active else "intx"), told
                if noise.random() < 0.1:
                    saved = device.interrupts.save()
                    device.interrupts.check(saved)
                    device.interrupts.load(saved)
                    assert model.take() == [0] * VECTORS, "saving and loading fires nothing by itself"
            model.close()


@for_each(range(6), [False, True])
def test_intx_is_a_level_after_every_step(seed: int, in_band: bool) -> None:
    """It fires when it can, and masks itself; unmasked while it is raised, it fires again."""
    with closing(Ringer()) as device:
        noise = random.Random(seed)
        link = RecordingLink(in_band_interrupts=in_band)
        level = masked = wired = disabled = False
        with attached(device, link):
            eventfd = os.eventfd(0, os.EFD_NONBLOCK)
            for number in range(200):
                step = noise.choice(["raise", "lower", "mask", "unmask", "wire", "unwire", "disable", "command"])
                if step == "raise":
                    device.interrupts.trigger()
                    level = True
                elif step == "lower":
                    device.interrupts.lower()
                    level = False
                elif step in ("mask", "unmask"):
                    set_irqs(device, INTX, 0, 1, MASK if step == "mask" else UNMASK, NONE)
                    masked = step == "mask"
                elif step == "wire":
                    set_irqs(device, INTX, 0, 1, TRIGGER, EVENTFD, fds=[os.dup(eventfd)])
                    wired, masked = True, False  # what is set up anew has no mask
                elif step == "unwire":
                    set_irqs(device, INTX, 0, 1, TRIGGER, EVENTFD)
                    wired = masked = False
                elif step == "disable":
                    set_irqs(device, INTX, 0, 0, TRIGGER, NONE)
                    wired = masked = False
                else:
                    disabled = not disabled
                    write_register(device, CONFIG, 4, 2, COMMAND_INTX_DISABLE * disabled)
                fires = level and not masked and not disabled and (wired or in_band)
                masked |= fires
                told = f"step {number}: {step}"
                assert _count(eventfd) == (fires and wired), told
                assert link.interrupts == [(INTX, 0)] * (fires and not wired), told
                link.interrupts.clear()
                assert bool(read_register(device, CONFIG, 6, 2) & STATUS_INTERRUPT) == level, told
            os.close(eventfd)
        assert function_of(device).interrupts.active == "intx"


def _count(eventfd: int) -> int:
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0
