"""Devices walked at random beside a model that is written from their manuals: all that can be seen, after every step.

Sources: the ACCES PCI-IDIO-16's manual as Linux' gpio-pci-idio-16 drives it, QEMU's docs/specs/edu.rst, PCI 3.0, 6.1.
"""

from __future__ import annotations

import os
from math import factorial
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from userdev_servers.edu import Edu
from userdev_servers.gpio import Gpio, get_lines
from vfio_user.device import ResetKind, function_of
from vfio_user.pci.config import ConfigSpace, Field
from vfio_user.testing import RecordingLink, Vectors, attached, read_register, set_irqs, write_register
from vfio_user.wire.constants import IrqSetFlags

U8, U16, U32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
INTX, MSIX = 0, 2


class Driven(RuleBasedStateMachine):
    """A device with a client that has wired its INTx line, and unmasks it by itself."""

    device: Any
    bar = 0

    def begin(self, device: Any) -> None:
        self.device = device
        self.session = attached(device, RecordingLink())
        self.link = self.session.__enter__()
        self.line = Vectors(device, INTX)
        self.level = False
        """What the line is, by the model."""

    def read(self, offset: int, width: int) -> int:
        return read_register(self.device, self.bar, offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        write_register(self.device, self.bar, offset, width, value)
        self.link.run_deferred()

    def is_up(self) -> bool:
        """Whether the line interrupts a client that unmasks it."""
        self.line.fired()
        set_irqs(self.device, INTX, 0, 1, IrqSetFlags.MASK, IrqSetFlags.DATA_NONE)
        set_irqs(self.device, INTX, 0, 1, IrqSetFlags.UNMASK, IrqSetFlags.DATA_NONE)
        (count,) = self.line.fired()
        assert count in (0, 1)
        return bool(count)

    def teardown(self) -> None:
        self.line.close()
        self.session.__exit__(None, None, None)
        self.device.close()


class GpioWalk(Driven):
    """16 lines each way, an interrupt for changes, filters."""

    bar = 2

    @initialize(wired=U16)
    def plug(self, wired: int) -> None:
        self.inputs, self.outputs, self.enabled, self.pending = wired, 0, 0, 0
        self.begin(Gpio(inputs=wired))
        self.events: list[object] = []
        """What whoever watches has to be told."""
        self.told: list[object] = []
        self.device._tell = self.told.append

    @rule(port=st.integers(0, 1), value=U8)
    def drive(self, port: int, value: int) -> None:
        before, self.outputs = self.outputs, self.outputs & ~(0xFF << 8 * port) | value << 8 * port
        if before != self.outputs:
            self.events.append({"outputs": self.outputs, "changed": before ^ self.outputs})
        self.write(4 * port, 1, value)

    @rule(value=U16)
    def wire(self, value: int) -> None:
        if value != self.inputs and self.enabled:
            self.pending, self.level = 1, True
        self.inputs = value
        self.device.set_inputs(value)

    @rule(line=st.integers(0, 15))
    def have_it_interrupt(self, line: int) -> None:
        self.enable()
        self.wire(self.inputs ^ 1 << line)

    @rule(value=U8)
    def clear(self, value: int) -> None:
        if self.pending:
            self.events.append({"interrupt": "cleared"})
        self.pending, self.level = 0, False
        self.write(1, 1, value)

    @rule()
    def enable(self) -> None:
        self.enabled = 1
        assert self.read(2, 1) == 0

    @rule(value=U8)
    def disable(self, value: int) -> None:
        self.enabled, self.level = 0, False
        self.write(2, 1, value)

    @rule()
    def reset(self) -> None:
        self.outputs = self.enabled = self.pending = 0
        self.level = False
        function_of(self.device).reset(ResetKind.DEVICE)

    @invariant()
    def everything_is_as_the_model_has_it(self) -> None:
        if not hasattr(self, "link"):
            return
        assert [self.read(offset, 1) for offset in (0, 4)] == [self.outputs & 0xFF, self.outputs >> 8]
        assert [self.read(offset, 1) for offset in (1, 5)] == [self.inputs & 0xFF, self.inputs >> 8]
        assert self.read(6, 1) == (7 if self.pending else 0)
        assert self.is_up() == self.level
        assert self.told == self.events
        assert get_lines(self.device, {}) == {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "interrupt_enabled": bool(self.enabled),
            "interrupt_pending": bool(self.pending),
        }


DMA_MASK, BUFFER, PAGE = (1 << 28) - 1, 0x40000, 4096


class EduWalk(Driven):
    """QEMU's edu: liveness, factorial, causes of interrupts, and DMA to and from a buffer."""

    @initialize()
    def plug(self) -> None:
        self.begin(Edu(msix=0))
        self.inverted = self.result = self.status = self.causes = 0
        self.transfer, self.command = [0, 0, 0], 0
        self.memory, self.buffer = bytearray(0x4000), bytearray(PAGE)
        self.link.memory[:] = os.urandom(0x4000)
        self.memory[:] = self.link.memory
        self.master = False
        self.device.dma.map(0, 0x4000, 3)

    @rule(value=U32)
    def live(self, value: int) -> None:
        self.inverted = ~value & 0xFFFFFFFF
        self.write(0x04, 4, value)

    @rule(value=st.one_of(st.integers(0, 40), U32))
    def compute(self, value: int) -> None:
        self.result = factorial(value) & 0xFFFFFFFF if value < 40 else 0
        if self.status:
            self.interrupt(1)
        self.write(0x08, 4, value)

    @rule(value=U32)
    def control(self, value: int) -> None:
        self.status = value & 0x80
        self.write(0x20, 4, value)

    @rule(value=st.sampled_from([0, 1, 0x80, 0x100, 0xFFFFFFFF]))
    def raise_(self, value: int) -> None:
        self.interrupt(value)
        self.write(0x60, 4, value)

    @rule(value=st.sampled_from([0, 1, 0x80, 0x100, 0x101, 0xFFFFFFFF]))
    def acknowledge(self, value: int) -> None:
        self.causes &= ~value
        self.level = self.level and bool(self.causes)
        self.write(0x64, 4, value)

    @rule(on=st.booleans())
    def let_it_use_memory(self, on: bool) -> None:
        self.master = on
        write_register(self.device, 7, 4, 2, 0x4 if on else 0)

    @rule(
        at=st.integers(0, 0x3000),
        inside=st.integers(0, PAGE + 10),
        length=st.integers(0, PAGE),
        to_ram=st.booleans(),
        interrupt=st.booleans(),
        run=st.booleans(),
    )
    def move(self, at: int, inside: int, length: int, to_ram: bool, interrupt: bool, run: bool) -> None:
        ends = (BUFFER + inside, at) if to_ram else (at, BUFFER + inside)
        for index, value in enumerate((*ends, length)):
            self.write(0x80 + 8 * index, 8, value)
            self.transfer[index] = value
        command = run | to_ram << 1 | interrupt << 2
        if run:
            self.command = command & ~1
            if self.master and inside + length <= PAGE:
                if to_ram:
                    self.memory[at : at + length] = self.buffer[inside : inside + length]
                else:
                    self.buffer[inside : inside + length] = self.memory[at : at + length]
            if interrupt:
                self.interrupt(0x100)
        self.write(0x98, 8, command)

    @rule()
    def reset(self) -> None:
        self.inverted = self.result = self.status = self.causes = self.command = 0
        self.transfer, self.buffer, self.master, self.level = [0, 0, 0], bytearray(PAGE), False, False
        function_of(self.device).reset(ResetKind.DEVICE)

    def interrupt(self, causes: int) -> None:
        self.causes |= causes
        self.level = self.level or bool(self.causes)

    @invariant()
    def everything_is_as_the_model_has_it(self) -> None:
        if not hasattr(self, "memory"):
            return
        registers = [self.read(offset, 4) for offset in (0x00, 0x04, 0x08, 0x20, 0x24)]
        assert registers == [0x010000ED, self.inverted, self.result, self.status, self.causes]
        assert [self.read(offset, 8) for offset in (0x80, 0x88, 0x90, 0x98)] == [*self.transfer, self.command]
        assert self.link.memory == self.memory
        assert self.device.buffer == self.buffer
        assert self.is_up() == self.level


class ConfigWalk(RuleBasedStateMachine):
    """Configuration space, byte by byte: what software may change of it, what ones clear, and who is told."""

    SIZE = 32

    @initialize(fields=st.lists(st.tuples(st.sampled_from([1, 2, 4]), U32, U32, U32), min_size=1, max_size=8))
    def lay_out(self, fields: list[tuple[int, int, int, int]]) -> None:
        self.config = ConfigSpace(self.SIZE)
        self.after_reset, self.writable, self.rw1c = (bytearray(self.SIZE) for _ in range(3))
        self.told: list[tuple[int, int, int]] = []
        self.watched: list[tuple[int, int]] = []
        at, laid_out = 0, []
        for size, value, writable, rw1c in fields:
            mask = (1 << 8 * size) - 1
            value, writable = value & mask, writable & mask
            rw1c &= mask & ~writable
            laid_out.append(Field(at, size, value, writable, rw1c))
            for store, bits in ((self.after_reset, value), (self.writable, writable), (self.rw1c, rw1c)):
                store[at : at + size] = bits.to_bytes(size, "little")
            at += size
        self.config.define(0, laid_out)
        self.model = bytearray(self.after_reset)

    @rule(offset=st.integers(0, SIZE - 4), size=st.sampled_from([1, 2, 4]))
    def watch(self, offset: int, size: int) -> None:
        self.watched.append((offset, size))
        self.config.watch(offset, size, lambda old, new: self.told.append((offset, old, new)))

    @rule(offset=st.integers(0, SIZE - 8), data=st.binary(min_size=1, max_size=8))
    def write(self, offset: int, data: bytes) -> None:
        before = bytes(self.model)
        for at, byte in enumerate(data, offset):
            kept = self.model[at] & ~self.writable[at] & ~(byte & self.rw1c[at])
            self.model[at] = kept | byte & self.writable[at]
        self.told.clear()
        self.config.write(offset, data)
        expected = [
            (start, number(before, start, size), number(self.model, start, size))
            for start, size in self.watched
            if start < offset + len(data) and offset < start + size
        ]
        assert self.told == expected

    @rule(offset=st.integers(0, SIZE - 4), size=st.sampled_from([1, 2, 4]), value=U32)
    def store(self, offset: int, size: int, value: int) -> None:
        """The device's own store asks nobody."""
        value &= (1 << 8 * size) - 1
        self.model[offset : offset + size] = value.to_bytes(size, "little")
        self.told.clear()
        self.config.set(offset, size, value)
        assert self.told == []

    @rule()
    def reset(self) -> None:
        self.model[:] = self.after_reset
        self.config.reset()

    @invariant()
    def all_bytes_are_the_models(self) -> None:
        if hasattr(self, "model"):
            assert self.config.read(0, self.SIZE) == self.model
            assert self.config.get(1, 4) == number(self.model, 1, 4)


def number(data: bytes | bytearray, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


def walk(machine: type[RuleBasedStateMachine], examples: int) -> None:
    phases = (Phase.explicit, Phase.generate)  # 25 steps can be read, and making them fewer takes a minute
    steps = settings(max_examples=examples, stateful_step_count=25, deadline=None, phases=phases)
    run_state_machine_as_test(machine, settings=steps)


def test_the_card_of_16_lines() -> None:
    walk(GpioWalk, 8)


def test_the_educational_device() -> None:
    walk(EduWalk, 8)


def test_configuration_space() -> None:
    walk(ConfigWalk, 20)
