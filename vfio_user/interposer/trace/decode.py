"""What a message says: its command's name and its fields, as the dialect's tables have them."""

from __future__ import annotations

import errno as errnos
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

from userdev.errors import ProtocolError
from userdev.layout import Layout
from userdev.trace import Decoded
from vfio_user.interposer.trace.registers import RegisterMap
from vfio_user.wire import NO_REPLY, Command, Dialect, Message
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import (
    FEATURE_MASK,
    DeviceFlags,
    DirtyPagesFlags,
    DmaFlags,
    Feature,
    FeatureFlags,
    IrqIndex,
    IrqInfoFlags,
    IrqSetFlags,
    MigrationState,
    MigrationSupport,
    RegionFlags,
    RegionIndex,
    UnmapFlags,
)

_FLAGS: Mapping[Command, type[IntFlag]] = {
    Command.DMA_MAP: DmaFlags,
    Command.DMA_UNMAP: UnmapFlags,
    Command.GET_INFO: DeviceFlags,
    Command.GET_REGION_INFO: RegionFlags,
    Command.GET_IRQ_INFO: IrqInfoFlags,
    Command.SET_IRQS: IrqSetFlags,
    Command.DIRTY_PAGES: DirtyPagesFlags,
}
_NAMED: Mapping[str, type[IntEnum]] = {"region": RegionIndex, "irq": IrqIndex}
_ADDRESSES = frozenset({"offset", "addr", "address", "iova", "size", "gpa_offset", "pgsizes", "page_size", "pgsize"})
_ACCESSES = frozenset({Command.REGION_READ.value, Command.REGION_WRITE.value})
FEATURE_BODIES: Mapping[str, tuple[Layout[Any], int]] = {
    "MIGRATION": (at.MIGRATION_FLAGS, FeatureFlags.GET),
    "MIG_DEVICE_STATE": (at.DEVICE_STATE, FeatureFlags.GET | FeatureFlags.SET),
    "DMA_LOGGING_START": (at.LOGGING_CONTROL, FeatureFlags.SET),
    "DMA_LOGGING_REPORT": (at.LOGGING_REPORT, FeatureFlags.GET | FeatureFlags.SET),
}
"""Feature: its structure, and the operations that carry it."""


@dataclass
class DecodedMessage(Decoded):
    """One message of vfio-user's, taken apart as far as it could be."""

    id: int = 0
    region: int | None = None
    offset: int | None = None
    size: int | None = None
    """Bytes accessed."""
    register: str = ""

    @property
    def value(self) -> int | None:
        """The data as a number, where it is a register's."""
        is_register = self.region is not None and self.command in _ACCESSES and len(self.data) in (1, 2, 4, 8)
        return int.from_bytes(self.data, "little") if is_register else None

    @property
    def mark(self) -> str:
        """Its message ID."""
        return f"#{self.id:<5}"

    @property
    def title(self) -> str:
        """Its command, and the register that it accesses, or what it is about otherwise."""
        return " ".join(filter(None, (self.command, self.register or self.detail)))

    def more(self) -> list[str]:
        """The register's name."""
        return [f"({self.register})"] if self.register else []

    def data_shown(self) -> str:
        """The data as a number, where it is a register's."""
        return f"= {self.value:#x}" if self.value is not None else super().data_shown()

    def json(self) -> dict[str, Any]:
        """The same for programs."""
        found = {"id": self.id, **super().json(), **({"register": self.register} if self.register else {})}
        if self.value is not None:
            found["value"] = self.value
        return found


def describe(
    dialect: Dialect, message: Message, registers: RegisterMap | None = None, request: DecodedMessage | None = None
) -> DecodedMessage:
    """Take `message` apart. `request` is what it answers, for what an error reply does not say itself."""
    command = dialect.command(message.command)
    name = command.value if command else f"command-{message.command}"
    decoded = DecodedMessage(name, _kind(message), id=message.id)
    if message.failed:
        decoded.fields["errno"] = errnos.errorcode.get(message.errno, message.errno)
    if request is not None:
        decoded.region, decoded.offset, decoded.size = request.region, request.offset, request.size
        decoded.register = request.register
    if command is None:
        decoded.data = message.payload
        return decoded
    try:
        _take_apart(dialect, command, message, decoded)
    except ProtocolError as error:
        decoded.problem = str(error)
        decoded.data = message.payload
    if registers is not None and decoded.region is not None and decoded.offset is not None:
        decoded.register = registers.name(decoded.region, decoded.offset)
    decoded.detail = _detail(command, decoded.fields)
    return decoded


def _detail(command: Command, fields: Mapping[str, Any]) -> str:
    """What a message is about that accesses no register."""
    match command:
        case Command.SET_IRQS if "nr_vectors" in fields:
            first, last = fields["start"], fields["start"] + fields["nr_vectors"] - 1
            return f"{fields['irq']} {'none' if last < first else first if first == last else f'{first}-{last}'}"
        case Command.VM_INTERRUPT if "subindex" in fields:
            return f"vector {fields['subindex']}"
        case Command.GET_IRQ_INFO:
            return str(fields.get("irq", ""))
        case Command.GET_REGION_INFO | Command.GET_REGION_IO_FDS:
            return str(fields.get("region", ""))
        case Command.DEVICE_FEATURE:
            return " ".join(str(fields[name]) for name in ("feature", "operation", "state") if name in fields)
        case _:
            return ""


def _kind(message: Message) -> str:
    if message.is_reply:
        return "error" if message.failed else "reply"
    return "posted" if message.flags & NO_REPLY else "request"


def _take_apart(dialect: Dialect, command: Command, message: Message, decoded: DecodedMessage) -> None:
    shape = dialect.shapes[command]
    layout = shape.reply if message.is_reply else shape.request
    payload = message.payload
    if not payload and (message.failed or (message.is_reply and command is Command.DIRTY_PAGES)):
        return  # only a bitmap is more than a header
    if layout is None:
        decoded.data = payload
        return
    record = layout.unpack(payload)
    tail = payload[layout.size :]
    for name, value in record._asdict().items():
        if name not in ("argsz", "reserved"):
            decoded.fields[name] = _shown(command, name, value)
    if isinstance(record, at.VfioUserRegionAccess):
        decoded.region, decoded.offset, decoded.size = record.region, record.offset, record.length
        decoded.data = tail
    elif isinstance(record, at.VfioUserDmaAccess):
        decoded.offset, decoded.size, decoded.data = record.address, record.length, tail
    elif isinstance(record, at.VfioUserVersion):
        decoded.fields["json"] = tail.rstrip(b"\0").decode(errors="replace")
    elif isinstance(record, at.VfioDeviceFeature):
        _take_feature_apart(record.flags, tail, decoded)
    elif isinstance(record, at.VfioUserWriteMulti) and not message.is_reply:
        decoded.fields["writes"] = [_write(write) for write in at.WRITE_MULTI_ENTRY.unpack_all(tail)]
    elif isinstance(record, at.VfioRegionInfo):
        decoded.region, decoded.data = record.region, tail
    else:
        decoded.data = tail


def _write(write: at.VfioUserWrite) -> dict[str, Any]:
    """One of several writes."""
    value = int.from_bytes(write.data[: write.length], "little")
    region = name_of(RegionIndex, write.region)
    return {"offset": f"{write.offset:#x}", "region": region, "length": write.length, "value": f"{value:#x}"}


def _take_feature_apart(flags: int, tail: bytes, decoded: DecodedMessage) -> None:
    number, operation = flags & FEATURE_MASK, FeatureFlags(flags & ~FEATURE_MASK & 0x70000)
    feature = name_of(Feature, number)
    decoded.fields.pop("flags")
    decoded.fields["feature"] = feature
    decoded.fields["operation"] = operation.name or "none"
    layout = feature_body(flags)
    if layout is None or len(tail) < layout.size:
        decoded.data = tail
        return
    for name, value in layout.unpack(tail)._asdict().items():
        if name in ("reserved", "data_fd"):
            continue
        if feature == "MIGRATION":
            decoded.fields["supports"] = MigrationSupport(value).name or value
        elif name == "state":
            decoded.fields[name] = name_of(MigrationState, value)
        else:
            decoded.fields[name] = f"{value:#x}" if name in _ADDRESSES else value
    decoded.data = tail[layout.size :]


def feature_body(flags: int) -> Layout[Any] | None:
    """The structure that DEVICE_FEATURE carries with these flags."""
    layout, carrying = FEATURE_BODIES.get(str(name_of(Feature, flags & FEATURE_MASK)), (None, 0))
    return layout if flags & carrying else None


def name_of(known: type[IntEnum], value: int) -> str | int:
    """The member's name, or the number where there is none."""
    member = known._value2member_map_.get(value)
    return str(member.name) if member is not None else value


def _shown(command: Command, name: str, value: Any) -> Any:
    """A field's value as a person wants to read it."""
    if name == "flags" and command in _FLAGS:
        return _FLAGS[command](value).name or value
    if name in _NAMED:
        return name_of(_NAMED[name], value)
    if name in _ADDRESSES and isinstance(value, int):
        return f"{value:#x}"
    return value
