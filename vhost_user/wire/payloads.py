"""Every payload, as data: a named tuple for its fields, and how it is read and written.

A payload's `section` is the heading in the specification, "Payload", that shows it. Reading raises `ProtocolError`
where the bytes are no such payload, and nothing else; writing takes values of our own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from enum import IntEnum, IntFlag
from typing import Any, Generic, NamedTuple, TypeVar

from userdev.errors import ProtocolError
from userdev.layout import Layout

T = TypeVar("T")
R = TypeVar("R", bound=tuple[Any, ...])
_NATIVE = "="

MAX_REGIONS = 8
"""Of one SET_MEM_TABLE ("Multiple Memory regions description")."""

MAX_CONFIG = 256
"""Bytes of configuration space in one message (QEMU, VHOST_USER_MAX_CONFIG_SIZE)."""

MAX_SHMEM_REGIONS = 256


class Payload(ABC, Generic[T]):
    """A structure behind a header: `decode` reads it whole, `encode` writes it."""

    section: str = ""

    @abstractmethod
    def decode(self, data: bytes) -> T:
        """Decode the bytes.

        Raises:
            ProtocolError: they are no such payload.
        """

    @abstractmethod
    def encode(self, value: T) -> bytes:
        """The bytes that say it."""

    def layouts(self) -> list[tuple[int, Layout[Any]]]:
        """The structures that it begins with, each with its offset; of a table head and first entry."""
        return []

    def chosen(self, data: bytes) -> tuple[Payload[Any], T]:
        """Which payload the bytes are, and what they say; it is another than this one only where that has several.

        Raises:
            ProtocolError: they are no such payload.
        """
        return self, self.decode(data)

    def __repr__(self) -> str:
        return f"<{self.section or 'no payload'}>"


class Empty(Payload[None]):
    """No payload at all."""

    def decode(self, data: bytes) -> None:
        """Nothing; ProtocolError where there is something."""
        if data:
            raise ProtocolError(f"{len(data)} bytes of payload where there are to be none")

    def encode(self, value: None) -> bytes:
        """No bytes."""
        return b""


class Number(Payload[int]):
    """A single 64-bit integer."""

    section = "A single 64-bit integer"
    size = 8

    def decode(self, data: bytes) -> int:
        """The number; ProtocolError where the bytes are not 8."""
        (value,) = _exactly(_U64, data)
        return int(value)

    def layouts(self) -> list[tuple[int, Layout[Any]]]:
        """The number."""
        return [(0, _U64)]

    def encode(self, value: int) -> bytes:
        """Its 8 bytes."""
        return _U64.pack(value)


class Fixed(Payload[R]):
    """One structure of fixed size."""

    def __init__(self, section: str, record: type[R], format: str) -> None:
        self.section = section
        self.layout = Layout(record, format, _NATIVE)

    def decode(self, data: bytes) -> R:
        """The fields; ProtocolError where the bytes are not exactly theirs."""
        return _exactly(self.layout, data)

    def layouts(self) -> list[tuple[int, Layout[Any]]]:
        """The structure."""
        return [(0, self.layout)]

    def encode(self, value: R) -> bytes:
        """Their bytes."""
        return self.layout.pack(*value)


class Table(Payload[tuple[R, ...]]):
    """A 32-bit count, 32 bits of padding and so many structures; or always `slots` of them, the rest zeros."""

    def __init__(self, section: str, entry: Layout[R], most: int, slots: int = 0) -> None:
        self.section = section
        self.entry = entry
        self.most = most
        self.slots = slots

    def decode(self, data: bytes) -> tuple[R, ...]:
        """The entries; ProtocolError where they are too many, or not as many as the count says."""
        count = _COUNT.unpack(data).entries
        if count > self.most:
            raise ProtocolError(f"{count} entries of {self.section}, and at most {self.most} are allowed")
        size = _COUNT.size + (self.slots or count) * self.entry.size
        if len(data) != size:
            raise ProtocolError(f"{count} entries of {self.section} take {size} bytes, and {len(data)} came")
        end = _COUNT.size + count * self.entry.size
        return tuple(self.entry.unpack_all(data[:end], _COUNT.size))

    def layouts(self) -> list[tuple[int, Layout[Any]]]:
        """The count, and the first entry."""
        return [(0, _COUNT), (_COUNT.size, self.entry)]

    def encode(self, value: tuple[R, ...]) -> bytes:
        """Count, padding and entries."""
        entries = b"".join(self.entry.pack(*entry) for entry in value)
        rest = bytes(max(0, self.slots - len(value)) * self.entry.size)
        return _COUNT.pack(len(value), 0, tail=entries + rest)


class Config(NamedTuple):
    """A piece of the configuration space; `flags` 1 is what live migration sets, read-only fields too."""

    offset: int
    size: int
    flags: int
    data: bytes


class ConfigPayload(Payload[Config]):
    """Virtio device config space. Its data may be missing where an error is reported (GET_CONFIG's reply)."""

    section = "Virtio device config space"

    def decode(self, data: bytes) -> Config:
        """The piece; ProtocolError where it is not as long as it says."""
        offset, size, flags = _CONFIG.unpack(data)
        tail = data[_CONFIG.size :]
        if size > MAX_CONFIG or len(tail) != size:
            raise ProtocolError(f"{size} bytes of configuration space announced, and {len(tail)} came")
        return Config(offset, size, flags, tail)

    def layouts(self) -> list[tuple[int, Layout[Any]]]:
        """The head; the data are behind it."""
        return [(0, _CONFIG)]

    def encode(self, value: Config) -> bytes:
        """Its header and data."""
        return _CONFIG.pack(value.offset, value.size, value.flags, tail=value.data)


class Opaque(Payload[bytes]):
    """A payload that the specification names and does not lay out."""

    def __init__(self, section: str) -> None:
        self.section = section

    def decode(self, data: bytes) -> bytes:
        """The bytes as they are."""
        return data

    def encode(self, value: bytes) -> bytes:
        """The bytes as they are."""
        return value


class Either(Payload[Any]):
    """One of several payloads, told by their sizes: what negotiated features or real peers make of one message."""

    def __init__(self, *choices: Payload[Any]) -> None:
        self.choices = choices
        self.section = " or ".join(choice.section or "nothing" for choice in choices)

    def decode(self, data: bytes) -> Any:
        """Decode by the first of the payloads that takes the bytes; the last one's ProtocolError where none does."""
        return self.chosen(data)[1]

    def layouts(self) -> list[tuple[int, Layout[Any]]]:
        """Those of all of them."""
        return [found for choice in self.choices for found in choice.layouts()]

    def chosen(self, data: bytes) -> tuple[Payload[Any], Any]:
        """The first of the payloads that takes the bytes, and what they say; see `decode`."""
        for choice in self.choices[:-1]:
            with suppress(ProtocolError):
                return choice.chosen(data)
        return self.choices[-1].chosen(data)

    def encode(self, value: Any) -> bytes:
        """The bytes of the first payload whose values are of this type."""
        return next(choice for choice in self.choices if _takes(choice, value)).encode(value)


def _takes(payload: Payload[Any], value: Any) -> bool:
    match payload:
        case Empty():
            return value is None
        case Number():
            return isinstance(value, int)
        case Fixed():
            return isinstance(value, payload.layout.record)
        case ConfigPayload():
            return isinstance(value, Config)
        case Table():
            return isinstance(value, tuple) and all(isinstance(entry, payload.entry.record) for entry in value)
    return isinstance(value, bytes)


def _exactly(layout: Layout[R], data: bytes) -> R:
    if len(data) != layout.size:
        raise ProtocolError(f"{layout.name} has {layout.size} bytes, and {len(data)} came")
    return layout.unpack(data)


class U64(NamedTuple):
    """A number alone."""

    value: int


class Count(NamedTuple):
    """The head of a table."""

    entries: int
    padding: int


class ConfigHeader(NamedTuple):
    """The head of a piece of the configuration space."""

    offset: int
    size: int
    flags: int


_U64 = Layout(U64, "Q", _NATIVE)
_COUNT = Layout(Count, "II", _NATIVE)
_CONFIG = Layout(ConfigHeader, "III", _NATIVE)


class VringState(NamedTuple):
    """`num` is a size, a base (of a packed ring: both indices with their wrap counters) or a switch."""

    vring: int
    num: int


class VringAddress(NamedTuple):
    """Addresses of a ring; `flags` bit 0 asks for writes to the used ring to be logged, from guest address `log` on.

    For a packed ring `used` and `available` are the event suppression areas of device and driver. The edition of 2019
    shows a field `size` that the structure (linux/vhost.h, vhost_vring_addr) never had.
    """

    vring: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int


VRING_F_LOG = 0x1
"""In `VringAddress.flags`: writes to the used ring are logged."""


class Region(NamedTuple):
    """Guest memory: where the guest has it, where the front-end has it, and where it is in the descriptor's file."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int


class XenRegion(NamedTuple):
    """A region where XEN_MMAP is negotiated."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int
    xen_mmap_flags: int
    domain: int


class Log(NamedTuple):
    """The dirty log: its bytes, and where they begin in the descriptor's file."""

    size: int
    offset: int


class Permission(IntFlag):
    """The permissions of a translation: VHOST_ACCESS_* (linux/vhost_types.h)."""

    NONE = 0
    READ = 1
    WRITE = 2


class IotlbType(IntEnum):
    """The kinds of IOTLB message."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


class IotlbMessage(NamedTuple):
    """A translation that is missing, made, or taken back (linux/vhost_types.h, vhost_iotlb_msg)."""

    iova: int
    size: int
    user_address: int
    permissions: int
    type: int


class VringArea(NamedTuple):
    """The place of a ring's doorbell in the descriptor's file; bits 0 to 7 are the ring, bit 8 is NO_FD."""

    vring_and_flags: int
    size: int
    offset: int


class Inflight(NamedTuple):
    """The region that in-flight requests are kept in, and how many rings of how many descriptors it is for."""

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int


class SharedObject(NamedTuple):
    """An object that devices share, such as a dma-buf."""

    uuid: bytes


class DeviceStateTransfer(NamedTuple):
    """The direction of a device's state (0 saves, 1 loads), and the phase of a migration (0 stopped)."""

    direction: int
    phase: int


class Mmap(NamedTuple):
    """A piece of a file to be seen in a shared memory region; `flags` bit 0: also to be written."""

    shmid: int
    fd_offset: int
    shm_offset: int
    length: int
    flags: int


class ShmemSize(NamedTuple):
    """Bytes of one shared memory region; 0 where there is none."""

    size: int


EMPTY = Empty()
NUMBER = Number()
VRING_STATE = Fixed("A vring state description", VringState, "II")
VRING_ADDRESS = Fixed("A vring address description", VringAddress, "IIQQQQ")
LOG = Fixed("Log description", Log, "QQ")
IOTLB = Fixed("An IOTLB message", IotlbMessage, "QQQBB6x")
CONFIG = ConfigPayload()
VRING_AREA = Fixed("Vring area description", VringArea, "QQQ")
INFLIGHT = Either(
    # The fields take 20 bytes; QEMU and all that is built of its headers send the structure with C's padding.
    Fixed("Inflight description", Inflight, "QQHH4x"),
    Fixed("Inflight description", Inflight, "QQHH"),
)
SHARED_OBJECT = Fixed("VhostUserShared", SharedObject, "16s")
DEVICE_STATE = Fixed("Device state transfer parameters", DeviceStateTransfer, "II")
MMAP = Fixed("MMAP request", Mmap, "B7xQQQQ")
SHMEM_CONFIG = Table(
    "VIRTIO Shared Memory Region configuration", Layout(ShmemSize, "Q", _NATIVE), MAX_SHMEM_REGIONS, MAX_SHMEM_REGIONS
)
CRYPTO_SESSION = Opaque("crypto session description")

_REGION = "QQQQ"
_XEN = _REGION + "II"
REGION = Either(
    Fixed("Single memory region description", Region, "8x" + _REGION),
    Fixed("Single memory region description", XenRegion, "8x" + _XEN),
)
REGIONS = Either(
    Table("Multiple Memory regions description", Layout(Region, _REGION, _NATIVE), MAX_REGIONS),
    Table("Multiple Memory regions description", Layout(XenRegion, _XEN, _NATIVE), MAX_REGIONS),
)
