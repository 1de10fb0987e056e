"""Where the fields of a message are: those of its header, and of the structures behind it, as the dialect has them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from userdev.errors import ProtocolError
from userdev.layout import Layout
from userdev.trace.lines import DATA, PAYLOAD
from vfio_user.interposer.trace.decode import FEATURE_BODIES, feature_body
from vfio_user.wire import DIALECTS, HEADER_SIZE, Command, Dialect, Message
from vfio_user.wire import layouts as at

HEADER_FIELDS = {"id": (0, 2), "command": (2, 2), "size": (4, 4), "flags": (8, 4), "errno": (12, 4)}
"""Field: offset and width in the message."""
_TABLES: dict[Command, Layout[Any]] = {Command.DMA_MAP: at.DMA_ENTRY_V6, Command.DMA_UNMAP: at.DMA_ENTRY_V6}
"""Commands that have a table in the draft, and what an entry of it is: its first is meant."""


def place_of(dialect: Dialect, message: Message, name: str) -> tuple[int, int] | None:
    """Offset in the message, and width, of the field of that name; None where the message has none."""
    if name in HEADER_FIELDS:
        return HEADER_FIELDS[name]
    name = name.removeprefix(PAYLOAD)
    structures = list(_structures(dialect, message))
    if name == DATA:
        start = HEADER_SIZE + (structures[0][1].size if structures else 0)
        return min(start, message.size), max(0, message.size - start)
    for start, layout in structures:
        found = layout.place_of(name)
        if found is not None:
            return start + found[0], found[1]
    return None


@cache
def known_fields() -> frozenset[str]:
    """The names of all fields that a message of any dialect can have."""
    shapes = [shape for dialect in DIALECTS.values() for shape in dialect.shapes.values()]
    layouts = [layout for shape in shapes for layout in (shape.request, shape.reply) if layout is not None]
    layouts += [*_TABLES.values(), *(layout for layout, _ in FEATURE_BODIES.values())]
    return frozenset({DATA, *HEADER_FIELDS, *(name for layout in layouts for name in layout.record._fields)})


def _structures(dialect: Dialect, message: Message) -> Iterator[tuple[int, Layout[Any]]]:
    """The structures of a message, each with its offset."""
    command = dialect.command(message.command)
    if command is None:
        return
    shape = dialect.shapes[command]
    layout = (shape.reply if message.is_reply else shape.request) or (
        _TABLES.get(command) if not message.is_reply else None
    )
    if layout is None:
        return
    yield HEADER_SIZE, layout
    if command is Command.DEVICE_FEATURE:
        try:
            body = feature_body(at.FEATURE.unpack(message.payload).flags)
        except ProtocolError:
            return
        if body is not None:
            yield HEADER_SIZE + layout.size, body
