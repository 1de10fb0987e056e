"""A trace of vfio-user's for people, packets and pictures: what `userdev.trace` has to know of the protocol."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from userdev import trace
from userdev.errors import UserError, meant
from userdev.relay.direction import Direction
from userdev.trace import Decoded, Note, TraceLine
from userdev.trace.format import Header
from userdev.trace.pcapng import PacketForm
from userdev.trace.perfetto import Lanes
from userdev.trace.view import ShownProtocol
from vfio_user.interposer.trace.decode import DecodedMessage, describe, name_of
from vfio_user.interposer.trace.files import CHANNELS, NAME, PROTOCOL
from vfio_user.interposer.trace.reading import VfioReading
from vfio_user.interposer.trace.registers import RegisterMap, is_named, registers_of
from vfio_user.wire import DIALECTS, Command
from vfio_user.wire.constants import IrqIndex, RegionIndex
from vfio_user.wire.dialects import dialect_named

PACKETS = PacketForm(NAME, b"VFUP", Path(__file__).parent.parent / "vfio_user.lua", tuple(DIALECTS), CHANNELS)

_DMA_COMMANDS = frozenset({"DMA_READ", "DMA_WRITE", "DMA_MAP", "DMA_UNMAP", "DIRTY_PAGES"})
_INTERRUPT_COMMANDS = frozenset({"DEVICE_SET_IRQS", "DEVICE_GET_IRQ_INFO", "VM_INTERRUPT"})
_TO_SERVER, _TO_CLIENT, _DMA, _INTERRUPTS = "client to server", "server to client", "DMA", "interrupts"


@dataclass(frozen=True)
class Filter(trace.Filter):
    """A selection of what to show; None and empty let everything through."""

    region: int | None = None
    offset: tuple[int, int] | None = None
    """First and last offset of an access."""
    register: str = ""

    @property
    def about_messages(self) -> bool:
        """Whether it asks for what only messages have: commands, a register, a region, an offset."""
        return super().about_messages or bool(self.register) or self.region is not None or self.offset is not None

    def fits(self, decoded: Decoded) -> bool:
        """Whether a message is to be shown: an access, by where it is too."""
        assert isinstance(decoded, DecodedMessage)
        if not super().fits(decoded):
            return False
        if self.region is not None and decoded.region != self.region:
            return False
        if self.register and not is_named(decoded.register, self.register):
            return False
        if self.offset is None:
            return True
        if decoded.offset is None:
            return False
        first, last = self.offset
        return decoded.offset <= last and decoded.offset + max(1, decoded.size or 1) > first


def _lane(line: TraceLine) -> str:
    entry, decoded = line.entry, line.decoded
    if isinstance(entry, Note):
        return _INTERRUPTS if entry.event == "interrupt" else ""
    if isinstance(entry, Header):
        return ""
    if decoded is not None and decoded.command in _DMA_COMMANDS:
        return _DMA
    if decoded is not None and decoded.command in _INTERRUPT_COMMANDS:
        return _INTERRUPTS
    return _TO_SERVER if entry.direction is Direction.TO_SERVER else _TO_CLIENT


LANES = Lanes((_TO_SERVER, _TO_CLIENT, _DMA, _INTERRUPTS), _lane)


def shown(header: Header, registers: RegisterMap | None = None) -> ShownProtocol:
    """What a trace of vfio-user is shown by, with these names of registers, or those that it brings along.

    Raises:
        UserError: its dialect is unknown, or its names are none.
    """
    dialect = dialect_named(header.dialect)
    names = registers if registers is not None else registers_of(header)

    def decode(record: trace.TraceRecord[Any], request: Decoded | None) -> Decoded:
        assert request is None or isinstance(request, DecodedMessage)
        return describe(dialect, record.message, names, request)

    return ShownProtocol(PROTOCOL, decode, lambda: VfioReading(dialect, names), PACKETS, LANES, _by_name)


def _by_name(note: Note) -> Note:
    """An interrupt's index by its name: `MSIX`."""
    index = note.details.get("index")
    if note.event != "interrupt" or not isinstance(index, int):
        return note
    return replace(note, details={**note.details, "index": name_of(IrqIndex, index)})


def command_named(name: str) -> str:
    """A command by its name in the specification or its short one, in any case.

    Raises:
        UserError: there is none.
    """
    for known in Command:
        if name.upper() in (known.name, known.value):
            return known.value
    names = [known.value for known in Command]
    raise UserError(f"unknown command {name!r}", hint=f"{meant(name.upper(), names)}there are: {', '.join(names)}")


def parse_region(text: str) -> int:
    """`BAR0`, `CONFIG`, or a number.

    Raises:
        UserError: it is neither.
    """
    names = RegionIndex.__members__
    try:
        number = int(names[text.upper()]) if text.upper() in names else int(text, 0)
    except ValueError:
        number = -1
    if number < 0:
        hint = f"{meant(text.upper(), names)}there are: {', '.join(names)}, or a number"
        raise UserError(f"{reprlib.repr(text)} is no region", hint=hint) from None
    return number


def parse_offsets(text: str) -> tuple[int, int]:
    """`0x10`, or `0x10-0x1f`.

    Raises:
        UserError: it is neither.
    """
    first, _, last = text.partition("-")
    try:
        return int(first, 0), int(last or first, 0)
    except ValueError:
        raise UserError(f"{text!r} is no offset", hint="0x10, or 0x10-0x1f for a range") from None
