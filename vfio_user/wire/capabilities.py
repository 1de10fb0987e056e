"""The capabilities of VERSION: one table for who reads, writes, and leaves them out where there is no room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from userdev.errors import ProtocolError
from vfio_user.wire.header import MAX_DATA


@dataclass(frozen=True)
class Capabilities:
    """The limits of one side. `None` means that it was not said; the value in force is a property's."""

    max_msg_fds: int | None = None
    max_data_xfer_size: int | None = None
    pgsizes: int | None = None
    max_dma_maps: int | None = None
    write_multiple: bool | None = None
    twin_socket: bool | None = None
    twin_socket_fd_index: int | None = None
    migration_pgsize: int | None = None
    migration_max_bitmap_size: int | None = None

    @property
    def fds_per_message(self) -> int:
        """Descriptors that a message to this peer may carry: what it said, or the default of 1."""
        return 1 if self.max_msg_fds is None else self.max_msg_fds

    @property
    def data_per_message(self) -> int:
        """Bytes."""
        return MAX_DATA if self.max_data_xfer_size is None else self.max_data_xfer_size


def _number(limit: int) -> Callable[[Any, str], int]:
    def read(value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
            raise ProtocolError(f"VERSION: {name} is {value!r}, not a number from 0 to {limit}", fatal=True)
        return value

    return read


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ProtocolError(f"VERSION: {name} is {value!r}, not a boolean", fatal=True)
    return value


_ANY = _number((1 << 64) - 1)


@dataclass(frozen=True)
class _Key:
    """One field of `Capabilities` in the JSON.

    `inside` names the object that the key is in ("" for none), `absent` is the value where that object lacks it.
    `dropped` is when it is left out where the peer has no room: 1 is the first, 0 never. One below `least` is not: a
    peer that is not told counts on the default, and may end the session by what it sends then.
    """

    field: str
    name: str
    read: Callable[[Any, str], Any]
    inside: str = ""
    absent: bool | None = None
    dropped: int = 0
    least: int = 0

    def may_go(self, drop: int, value: int) -> bool:
        """Whether this value can be left out where so much is."""
        return 0 < self.dropped <= drop and value >= self.least


# docs/protocol.md 3.4. Those with a default can be left out, the least important first.
_KEYS = (
    _Key("max_msg_fds", "max_msg_fds", _number(1024)),
    _Key("max_data_xfer_size", "max_data_xfer_size", _ANY, dropped=3, least=MAX_DATA),
    _Key("pgsizes", "pgsizes", _ANY, dropped=1),
    _Key("max_dma_maps", "max_dma_maps", _ANY, dropped=2),
    _Key("write_multiple", "write_multiple", _flag),
    _Key("twin_socket", "supported", _flag, inside="twin_socket", absent=False),
    _Key("twin_socket_fd_index", "fd_index", _number(1023), inside="twin_socket"),
    _Key("migration_pgsize", "pgsize", _ANY, inside="migration", dropped=4),
    _Key("migration_max_bitmap_size", "max_bitmap_size", _ANY, inside="migration", dropped=4),
)

ALL = frozenset(key.field for key in _KEYS)
"""The fields that a dialect may have."""

DROPS = range(max(key.dropped for key in _KEYS) + 1)
"""How much `encode` can be told to leave out: nothing, then more and more."""


def encode(capabilities: Capabilities, fields: frozenset[str], fds_name: str, *, drop: int = 0) -> dict[str, Any]:
    """The JSON object of `capabilities`: what was said of `fields`, less what `drop` (of `DROPS`) leaves out.

    `fds_name` is what the dialect calls `max_msg_fds`.
    """
    said: dict[str, Any] = {}
    for key, name in _named(fds_name):
        value = getattr(capabilities, key.field)
        if value is None or key.field not in fields or key.may_go(drop, value):
            continue
        (said.setdefault(key.inside, {}) if key.inside else said)[name] = value
    return said


def decode(said: dict[str, Any], fds_name: str) -> Capabilities:
    """Decode a peer's JSON object; keys that nobody knows are passed over.

    Raises:
        ProtocolError: (EINVAL, fatal) a value is of the wrong type or out of range.
    """
    found: dict[str, Any] = {}
    for key, name in _named(fds_name):
        place = said.get(key.inside) if key.inside else said
        if place is None and key.inside not in said:
            continue
        if not isinstance(place, dict):
            raise ProtocolError(f"VERSION: {key.inside} is {place!r}, not an object", fatal=True)
        if name in place:
            found[key.field] = key.read(place[name], f"{key.inside}.{name}".lstrip("."))
        elif key.inside:
            found[key.field] = key.absent
    return Capabilities(**found)


def _named(fds_name: str) -> Iterator[tuple[_Key, str]]:
    for key in _KEYS:
        yield key, fds_name if key.field == "max_msg_fds" else key.name
