"""Servers whose config space or regions are not what drivers of guests need, each in one way."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.conformance_target import Fault, Proceed, Reply
from vfio_user.server.session import Session
from vfio_user.wire import Command, Message
from vfio_user.wire.constants import IrqIndex, RegionIndex
from vfio_user.wire.layouts import IRQ_INFO, REGION_ACCESS, REGION_INFO

COMMAND, STATUS, LINE_AND_PIN = 0x04, 0x06, 0x3C
IO, MEMORY, INTX_DISABLE, RAISED = 1, 1 << 1, 1 << 10, 1 << 3


@dataclass
class ConfigReadsAs(Fault):
    """Bits of registers of config space, by the offsets of these, that stay set, or clear, whatever is written."""

    set: dict[int, int] = field(default_factory=dict)
    clear: dict[int, int] = field(default_factory=dict)

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        if command is not Command.REGION_READ:
            return payload, fds
        access = REGION_ACCESS.unpack(payload)
        data = bytearray(payload[REGION_ACCESS.size :])
        for offset in (self.set | self.clear) if access.region == RegionIndex.CONFIG else ():
            at = offset - access.offset
            if 0 <= at <= len(data) - 2:
                (value,) = struct.unpack_from("<H", data, at)
                struct.pack_into("<H", data, at, value & ~self.clear.get(offset, 0) | self.set.get(offset, 0))
        return payload[: REGION_ACCESS.size] + bytes(data), fds


@dataclass
class RegionSays(Fault):
    """Fields of a region's description that are otherwise."""

    index: int
    fields: dict[str, int] = field(default_factory=dict)

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        if command is Command.GET_REGION_INFO and REGION_INFO.unpack(payload)[2] == self.index:
            said = REGION_INFO.unpack(payload)._replace(**self.fields)
            payload = REGION_INFO.pack(*said) + payload[REGION_INFO.size :]
        return payload, fds


class HasNoLine(Fault):
    """The interrupt type INTx has no vector."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        if command is Command.GET_IRQ_INFO and IRQ_INFO.unpack(payload)[2] == IrqIndex.INTX:
            payload = IRQ_INFO.pack(*IRQ_INFO.unpack(payload)._replace(nr_vectors=0))
        return payload, fds


@dataclass(frozen=True)
class Broken:
    """A server with one fault: the checks that find it, and what `probe` says, if it can see that."""

    fault: Fault
    found: Iterable[str]
    warning: str = ""


BROKEN = {
    "an I/O BAR that is too large": Broken(RegionSays(5, {"size": 512}), ["config/io-bar-size"], "I/O BAR5"),
    "memory that cannot be turned on": Broken(ConfigReadsAs(clear={COMMAND: MEMORY}), ["config/decodes-its-bars"]),
    "ports that cannot be turned on": Broken(ConfigReadsAs(clear={COMMAND: IO}), ["config/decodes-its-bars"]),
    "a pin without a line": Broken(HasNoLine(), ["config/pin-has-a-vector"], "interrupt pin A"),
    "a line that cannot be masked": Broken(ConfigReadsAs(clear={COMMAND: INTX_DISABLE}), ["config/intx-disable"]),
    "a line that stays masked": Broken(ConfigReadsAs(set={COMMAND: INTX_DISABLE}), ["config/intx-disable"]),
    "a line raised by who has none": Broken(
        ConfigReadsAs(set={STATUS: RAISED}, clear={LINE_AND_PIN: 0xFF00}), ["config/no-interrupt-status"], "no pin"
    ),
    "a mapping that no kernel makes": Broken(
        RegionSays(2, {"offset": 0x200}), ["region_info/areas-are-pages"], "region 2 is to be mapped at 0x200"
    ),
}
