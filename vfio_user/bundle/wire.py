"""What is otherwise on the wire of two runs of one guest: by register, as no two runs have the same messages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path

from userdev.errors import UserError
from userdev.trace import View
from userdev.trace.exchanges import POSTED, Exchange
from vfio_user.harness.breakpoint import role
from vfio_user.traces import open_trace
from vfio_user.wire import layouts as at
from vfio_user.wire.header import HEADER_SIZE

_DMA = frozenset({"DMA_READ", "DMA_WRITE"})
_DMA_DATA = HEADER_SIZE + at.DMA_ACCESS.size
"""Where the data is, of a request that writes and of a reply to one that reads."""
_BYTES_SHOWN = 8
_SHOWN = 6
"""Values that are shown of a register."""


def wire_differences(first: Mapping[str, Path], second: Mapping[str, Path]) -> Iterator[tuple[str, str, str]]:
    """What is otherwise in the traces of the same server: what it is, and what it was in the first and the second.

    The same is what serves the same device of the same guest, whatever program it is. That one of them has no trace
    is said of it.

    Of each register it is compared which values were written and read, in their order and without repetition: how often
    a guest asked is chance.
    """
    second = _named_as(first, second)
    for name in sorted({*first} | {*second}):
        if name not in first or name not in second:
            its, whose = ("a trace" if name in traces else "no trace" for traces in (first, second))
            yield name, its, whose
            continue
        try:
            one, other = _values(first[name]), _values(second[name])
        except UserError as error:
            yield name, "", str(error)
            continue
        for place in [*one, *(place for place in other if place not in one)]:
            was, now = one.get(place, []), other.get(place, [])
            if was != now:
                pairs = enumerate(zip_longest(was, now))
                first_other = next(number for number, (value, its) in pairs if value != its)
                which = f", from value {first_other + 1} on" if first_other else ""
                yield f"{name}: {place}{which}", _told(was[first_other:]), _told(now[first_other:])


def _named_as(first: Mapping[str, Path], second: Mapping[str, Path]) -> dict[str, Path]:
    """The second traces, each by the name that the server of its device has among the first ones."""
    theirs = {role(name): name for name in first if name not in second}
    return {name if name in first else theirs.pop(role(name), name): path for name, path in second.items()}


def _values(path: Path) -> dict[str, list[str]]:
    """The values of each place, by its name, in their order, each that follows itself once."""
    values: dict[str, list[str]] = {}
    for event in open_trace(path).events(keep=True):
        if not isinstance(event, Exchange) or (value := _value(event)) is None:
            continue
        if event.place.kind == POSTED and event.view == View.RECEIVED:
            continue  # it went on later, or not at all: that is another record
        name = event.place.command if event.place.command in _DMA else event.place.title
        where = values.setdefault(name, [])
        if not where or where[-1] != value:
            where.append(value)
    return values


def _value(exchange: Exchange) -> str | None:
    """What was written or read; None where that is nothing that a guest or a device made."""
    place = exchange.place
    if place.command in _DMA:  # where a guest has its memory is chance, so these are one place
        data = (exchange.asked if place.command == "DMA_WRITE" else exchange.answered)[_DMA_DATA:]
        if len(data) <= _BYTES_SHOWN:
            return data.hex()
        return f"{len(data)} bytes {data[:_BYTES_SHOWN].hex()}... (SHA-256 {hashlib.sha256(data).hexdigest()[:8]})"
    if exchange.error:
        return exchange.error
    return f"{exchange.value:#x}" if place.is_access and exchange.value is not None else None


def _told(values: list[str]) -> str:
    """A register's values, as many as one reads."""
    return ", ".join(values[:_SHOWN]) + (f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")
