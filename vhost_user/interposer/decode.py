"""What a message says: its name, and the fields of its payload, for traces and for scenarios alike."""

from __future__ import annotations

import errno as errnos
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntFlag
from functools import cache
from types import MappingProxyType
from typing import Any

from userdev.errors import ProtocolError
from userdev.trace import Decoded
from userdev.trace.lines import DATA, PAYLOAD
from vhost_user.interposer.asker import REQUESTS, Asker, name_of
from vhost_user.wire import HEADER_SIZE, NO_FD, VRING_MASK, DeviceStatus, FrontEndRequest, Message
from vhost_user.wire import payloads as of
from vhost_user.wire.features import ProtocolFeature, VirtioFeature
from vhost_user.wire.messages import Reply, Request, shape_of

HEADER_FIELDS: Mapping[str, tuple[int, int]] = MappingProxyType({"request": (0, 4), "flags": (4, 4), "size": (8, 4)})
"""Field: offset and width in the message."""
_ADDRESSES = frozenset(
    {
        "guest_address",
        "user_address",
        "mmap_offset",
        "descriptor",
        "used",
        "available",
        "log",
        "iova",
        "offset",
        "fd_offset",
        "shm_offset",
    }
)
"""Fields that are shown in hexadecimal, but for sizes."""


_LAST_ERRNO = 4095
"""Of Linux. QEMU's storage daemon and passt answer SET_LOG_BASE with the log's size, which is larger."""


def names(kind: type[IntFlag], value: int) -> str:
    """The names of the bits that are set; those without a name, as a device's own feature bits, as a number."""
    known = [bit for bit in kind if bit & value]
    rest = value & ~sum(known)
    return "|".join([*(str(bit.name) for bit in known), *([f"{rest:#x}"] if rest or not known else [])])


def _virtio(value: int) -> str:
    return names(VirtioFeature, value)


def _protocol(value: int) -> str:
    return names(ProtocolFeature, value)


def _status(value: int) -> str:
    return names(DeviceStatus, value)


def _vring(value: int) -> str | int:
    """The ring of SET_VRING_KICK, _CALL and _ERR; with bit 8 without a descriptor."""
    return f"{value & VRING_MASK} (no descriptor)" if value & NO_FD else value


def _mac(value: int) -> str:
    """The address that SEND_RARP has in the first 6 bytes of its number, as people write one."""
    return value.to_bytes(8, "little")[:6].hex(":")


def _result(value: int) -> str | int:
    return errnos.errorcode.get(value, value) if value else 0


_R = FrontEndRequest
_RESULT, _VALUE = "result", "value"
_NUMBERS: Mapping[Request, tuple[str, Callable[[int], str | int]]] = MappingProxyType(
    {
        _R.GET_FEATURES: ("features", _virtio),
        _R.SET_FEATURES: ("features", _virtio),
        _R.GET_PROTOCOL_FEATURES: ("protocol_features", _protocol),
        _R.SET_PROTOCOL_FEATURES: ("protocol_features", _protocol),
        _R.GET_STATUS: ("status", _status),
        _R.SET_STATUS: ("status", _status),
        _R.SET_VRING_KICK: ("vring", _vring),
        _R.SET_VRING_CALL: ("vring", _vring),
        _R.SET_VRING_ERR: ("vring", _vring),
        _R.GET_QUEUE_NUM: ("queues", int),
        _R.GET_MAX_MEM_SLOTS: ("slots", int),
        _R.NET_SET_MTU: ("mtu", int),
        _R.SEND_RARP: ("mac", _mac),
    }
)
"""Messages that are one number: what it is called, and how it is shown. What a reply has otherwise is a result."""


@dataclass
class DecodedMessage(Decoded):
    """One message of vhost-user's, taken apart as far as it could be."""

    ring: int | None = None
    """The ring that it is about."""
    number: int | None = None
    """The message, where it is one number."""
    offset: int | None = None
    """Of an access to configuration space; `size` bytes."""
    size: int | None = None

    @property
    def value(self) -> int | None:
        """The number that the message is, or that it reads or writes in configuration space."""
        if self.offset is None:
            return self.number
        asks = self.kind == "request" and self.command == FrontEndRequest.GET_CONFIG.name
        return int.from_bytes(self.data, "little") if len(self.data) in (1, 2, 4, 8) and not asks else None

    def data_shown(self) -> str:
        """The data as a number, where it is one of configuration space."""
        return f"= {self.value:#x}" if self.offset is not None and self.value is not None else super().data_shown()

    def json(self) -> dict[str, Any]:
        """The same for programs."""
        return {**super().json(), **({"value": self.value} if self.value is not None else {})}


def describe(asker: Asker, message: Message) -> DecodedMessage:
    """Take `message` apart, which went over this channel."""
    request = asker.request(message.request)
    if request is None:
        return DecodedMessage(f"request-{message.request}", _kind(message, True), data=message.payload)
    decoded = DecodedMessage(name_of(request), _kind(message, shape_of(request).reply is Reply.ALWAYS))
    try:
        payload, value = payload_of(request, message).chosen(message.payload)
    except ProtocolError as error:
        decoded.problem, decoded.data = str(error), message.payload
        return decoded
    _show(request, message, payload, value, decoded)
    if decoded.ring is not None:
        decoded.detail = f"ring {decoded.ring}"
    return decoded


def payload_of(request: Request, message: Message) -> of.Payload[Any]:
    """The payload of a request, or of its reply: its own, or the number of an acknowledgement."""
    shape = shape_of(request)
    if not message.is_reply:
        return shape.payload
    if shape.reply is not Reply.ALWAYS and len(message.payload) == of.NUMBER.size:
        return of.NUMBER
    return shape.reply_payload


def place_of(asker: Asker, message: Message, name: str) -> tuple[int, int] | None:
    """Offset in the message, and width, of the field of that name; None where the message has none."""
    if name in HEADER_FIELDS:
        return HEADER_FIELDS[name]
    name = name.removeprefix(PAYLOAD)
    request = asker.request(message.request)
    try:
        layouts = payload_of(request, message).chosen(message.payload)[0].layouts() if request is not None else []
    except ProtocolError:
        layouts = []
    if name == DATA:
        start = HEADER_SIZE + (layouts[-1][0] + layouts[-1][1].size if layouts else 0)
        return min(start, message.size), max(0, message.size - start)
    if request is not None and name == _number_of(request, message)[0]:
        name = _VALUE
    for start, layout in layouts:
        if (found := layout.place_of(name)) is not None:
            return HEADER_SIZE + start + found[0], found[1]
    return None


@cache
def known_fields() -> frozenset[str]:
    """The names of all fields that a message can have."""
    shapes = [shape_of(request) for request in REQUESTS.values()]
    layouts = [
        each for shape in shapes for payload in (shape.payload, shape.reply_payload) for each in payload.layouts()
    ]
    fields = (name for _, layout in layouts for name in layout.record._fields)
    return frozenset({DATA, _RESULT, *HEADER_FIELDS, *fields, *(name for name, _ in _NUMBERS.values())})


def _kind(message: Message, own_reply: bool) -> str:
    if message.is_reply:
        return "reply"
    return "request" if own_reply or message.needs_reply else "posted"


def _number_of(request: Request, message: Message) -> tuple[str, Callable[[int], str | int]]:
    """What the number of a message is called, and how it is shown."""
    acknowledges = message.is_reply and shape_of(request).reply is not Reply.ALWAYS
    if request in _NUMBERS and not acknowledges:
        return _NUMBERS[request]
    return (_RESULT, _result) if message.is_reply else (_VALUE, hex)


def _show(request: Request, message: Message, payload: of.Payload[Any], value: Any, decoded: DecodedMessage) -> None:
    """Say what a payload says, as people want to read it."""
    match value:
        case int():
            name, shown = _number_of(request, message)
            decoded.fields[name] = shown(value)
            decoded.number = value if name not in ("vring", _RESULT) else None
            if name == "vring":
                decoded.ring = value & VRING_MASK
            if name == _RESULT and _is_error(request, value):
                decoded.kind = "error"
        case bytes():
            decoded.data = value
        case of.Config():
            decoded.fields |= {"offset": hex(value.offset), "size": value.size, "flags": value.flags}
            decoded.offset, decoded.size, decoded.data = value.offset, value.size, value.data
        case tuple() if isinstance(payload, of.Table):
            decoded.fields["entries"] = [_fields(entry) for entry in value]
        case tuple():
            decoded.fields |= _fields(value)
            ring = getattr(value, "vring", getattr(value, "vring_and_flags", None))
            decoded.ring = ring & VRING_MASK if ring is not None else None


def _is_error(request: Request, value: int) -> bool:
    """Whether the number of a reply says that something was refused; the size of a log that was taken does not."""
    return bool(value & ~NO_FD) and not (request is _R.SET_LOG_BASE and value > _LAST_ERRNO)


def _fields(record: Any) -> dict[str, Any]:
    return {name: _shown(name, value) for name, value in record._asdict().items()}


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return hex(value) if name in _ADDRESSES else value
