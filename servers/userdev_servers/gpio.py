"""ACCES PCI-IDIO-16: 16 isolated inputs and 16 FET outputs, as Linux' gpio-pci-idio-16 driver knows it.

The host's side of the card is a control socket (`userdev_servers.control`): it sets inputs and is told of outputs.
servers/README.md has the registers and the requests.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

from userdev.errors import UserError
from userdev_servers.control import ControlSocket
from vfio_user.device import Bar, IntX, PciDevice, PciIds, register, state

LINES = 16
ALL = (1 << LINES) - 1
PENDING = 0x07
"""Interrupt status: an interrupt waits (bit 2), and it is this card's (bits 0 and 1, as older drivers want them)."""


class Gpio(PciDevice):
    """ACCES PCI-IDIO-16: 16 inputs that interrupt when one changes, and 16 outputs."""

    ids = PciIds(0x494F, 0x0DC8, class_code=0xFF0000, subsystem_vendor=0x494F, subsystem=0x0DC8)
    interrupts = IntX()

    outputs: int = state(0, bits=LINES)
    irq_enabled: int = state(0, bits=1)
    irq_pending: int = state(0, bits=1)
    filters: int = state(0, bits=1)
    inputs: int = state(0, bits=LINES, keep=True)
    """What is wired to the card, which no reset changes."""

    def __init__(
        self,
        *,
        control: Annotated[str, "listen here for JSON lines: set, get, watch"] = "",
        inputs: Annotated[int, "the inputs at the start, a bit each"] = 0,
        io: Annotated[bool, "BAR 2 in I/O space, as the card has it; no: in memory space"] = True,
    ) -> None:
        if not 0 <= inputs <= ALL:
            raise UserError(f"there are {LINES} inputs, and {inputs:#x} is more")
        super().__init__(bars=(Bar(2, size=8, io=True) if io else Bar(2, size=0x1000),))
        self.inputs = inputs
        self._control = ControlSocket(Path(control), self, COMMANDS, changing=("set",)) if control else None

    def on_close(self) -> None:
        """Close the control socket."""
        if self._control is not None:
            self._control.close()

    @register(bar=2, offset=0, width=1, count=2, stride=4)
    def drive_outputs(self, port: int, value: int) -> None:
        """Outputs 0 to 7 (offset 0) and 8 to 15 (offset 4); controllers are told of a change."""
        self._set_outputs(self.outputs & ~(0xFF << 8 * port) | value << 8 * port)

    @drive_outputs.reader
    def _(self, port: int) -> int:
        return self.outputs >> 8 * port & 0xFF

    @register(bar=2, offset=1, width=1)
    def clear_interrupt(self, value: int) -> None:
        """Any write clears the interrupt that is pending; controllers are told if there was one."""
        was_pending, self.irq_pending = self.irq_pending, 0
        self.interrupts.lower()
        if was_pending:
            self._tell({"interrupt": "cleared"})

    @clear_interrupt.reader
    def _(self) -> int:
        return self.inputs & 0xFF

    @register(bar=2, offset=5, width=1)
    def high_inputs(self) -> int:
        """Inputs 8 to 15."""
        return self.inputs >> 8

    @register(bar=2, offset=2, width=1)
    def disable_interrupt(self, value: int) -> None:
        """Any write disables the interrupt when an input changes; a read enables it."""
        self.irq_enabled = 0
        self.interrupts.lower()

    @disable_interrupt.reader
    def _(self) -> int:
        self.irq_enabled = 1
        return 0

    @register(bar=2, offset=3, width=1)
    def deactivate_filters(self, value: int) -> None:
        """Any write switches the inputs' filters off; a read switches them on."""
        self.filters = 0

    @deactivate_filters.reader
    def _(self) -> int:
        self.filters = 1
        return 0

    @register(bar=2, offset=6, width=1)
    def interrupt_status(self) -> int:
        """Interrupt status: PENDING, or 0."""
        return PENDING if self.irq_pending else 0

    def set_inputs(self, value: int) -> None:
        """Set the inputs from outside; a change interrupts a guest that has enabled it."""
        changed = value ^ self.inputs
        self.inputs = value
        if changed and self.irq_enabled:
            self.irq_pending = 1
            self.interrupts.trigger()

    def _set_outputs(self, value: int) -> None:
        changed = value ^ self.outputs
        self.outputs = value
        if changed:
            self._tell({"outputs": value, "changed": changed})

    def _tell(self, event: Mapping[str, Any]) -> None:
        if self._control is not None:
            self._control.tell(event)


class Lines(TypedDict):
    """The result of `get` and `set`."""

    inputs: int
    outputs: int
    interrupt_enabled: bool
    interrupt_pending: bool


def set_lines(device: Gpio, request: Mapping[str, Any]) -> Lines:
    """{"command": "set", "inputs": 0x21} sets all inputs, {"command": "set", "input": 5, "value": 1} one of them."""
    if "inputs" in request:
        wanted = request["inputs"]
    else:
        line, value = request.get("input"), request.get("value")
        if type(line) is not int or not 0 <= line < LINES or type(value) is not int or value not in (0, 1):
            raise UserError(f'give "inputs", or "input" from 0 to {LINES - 1} and "value" 0 or 1')
        wanted = device.inputs & ~(1 << line) | value << line
    if type(wanted) is not int or not 0 <= wanted <= ALL:
        raise UserError(f"{reprlib.repr(wanted)} is no number of {LINES} bits")
    device.set_inputs(wanted)
    return get_lines(device, request)


def get_lines(device: Gpio, request: Mapping[str, Any]) -> Lines:
    """{"command": "get"}: all lines, and whether an interrupt is enabled and waits."""
    return {
        "inputs": device.inputs,
        "outputs": device.outputs,
        "interrupt_enabled": bool(device.irq_enabled),
        "interrupt_pending": bool(device.irq_pending),
    }


COMMANDS = {"set": set_lines, "get": get_lines}
