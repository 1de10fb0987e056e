"""The dialects, as tables: which number a command has, who sends it, and what its messages look like.

``current``
    What QEMU >= 11 and libvfio-user speak (docs/interop/vfio-user.rst of QEMU).
``draft-v6``
    The specification of November 2020: tables in DMA_MAP, VM_INTERRUPT, DIRTY_PAGES, a v1 migration region.
``region-migration``
    Current numbers with the v1 region and DIRTY_PAGES: libvfio-user before 2023.
``current-dma32``, ``region-migration-dma32``
    The same with 32-bit counts in DMA messages: QEMU 10.1 and 10.2; QEMU forks of 2022.

Nothing here does anything: servers, clients, the interposer and the trace printer all look these tables up.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Any

from userdev.errors import UserError
from userdev.layout import Layout
from vfio_user.wire import layouts as at
from vfio_user.wire.capabilities import ALL


class Command(Enum):
    """Every command of every dialect, by its name in the specification; the number is the dialect's."""

    VERSION = "VERSION"
    DMA_MAP = "DMA_MAP"
    DMA_UNMAP = "DMA_UNMAP"
    GET_INFO = "DEVICE_GET_INFO"
    GET_REGION_INFO = "DEVICE_GET_REGION_INFO"
    GET_REGION_IO_FDS = "DEVICE_GET_REGION_IO_FDS"
    GET_IRQ_INFO = "DEVICE_GET_IRQ_INFO"
    SET_IRQS = "DEVICE_SET_IRQS"
    REGION_READ = "REGION_READ"
    REGION_WRITE = "REGION_WRITE"
    DMA_READ = "DMA_READ"
    DMA_WRITE = "DMA_WRITE"
    VM_INTERRUPT = "VM_INTERRUPT"
    DEVICE_RESET = "DEVICE_RESET"
    DIRTY_PAGES = "DIRTY_PAGES"
    REGION_WRITE_MULTI = "REGION_WRITE_MULTI"
    DEVICE_FEATURE = "DEVICE_FEATURE"
    MIG_DATA_READ = "MIG_DATA_READ"
    MIG_DATA_WRITE = "MIG_DATA_WRITE"

    __hash__ = object.__hash__  # members are singletons; looked up for every message


class Sender(Enum):
    """The side that may send a command."""

    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True)
class Shape:
    """One command of one dialect. A layout that is None means: header only."""

    number: int
    request: Layout[Any] | None = None
    reply: Layout[Any] | None = None
    sender: Sender = Sender.CLIENT
    request_tail: str = ""
    """What may follow the request's fixed part; empty where nothing does."""
    reply_tail: str = ""
    fds: str = ""
    """Who may attach descriptors: "request", "reply" or nobody."""


@dataclass(frozen=True)
class Dialect:
    """One way to speak. Equal commands share their shape; the rest is what no layout can say."""

    name: str
    shapes: Mapping[Command, Shape]
    fds_capability: str
    """The VERSION capability that says how many descriptors a message may carry."""
    capabilities: frozenset[str]
    """The names, as in `version.Capabilities`, of the capabilities that VERSION has in this dialect."""
    minor: int
    """Highest minor version offered; a reply carries the smaller of both sides'."""
    overlap_errno: int
    """What mapping over an existing DMA region is answered with."""
    write_reply_counts: bool
    """Whether REGION_WRITE's reply carries the count written; the draft wants 0."""
    region_info_needs_argsz: bool
    """Whether GET_REGION_INFO has to say in `argsz` how much of the reply fits. In the draft it need not, and then gets
    all of it; one that says so gets no more, as its client asks again."""
    migration_region: bool
    """Whether migration is v1: a device-specific region and DIRTY_PAGES."""
    names: Mapping[int, Command] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        by_number = {shape.number: command for command, shape in self.shapes.items()}
        object.__setattr__(self, "names", MappingProxyType(by_number))

    def __contains__(self, command: Command) -> bool:
        return command in self.shapes

    def number(self, command: Command) -> int:
        """The command's number; KeyError where the dialect lacks it (our own mistake, not a peer's)."""
        return self.shapes[command].number

    def command(self, number: int) -> Command | None:
        """The command that `number` means, None for an unknown one."""
        return self.names.get(number)

    def __repr__(self) -> str:
        return f"<Dialect {self.name}>"


_SERVER = Sender.SERVER

_CURRENT = {
    Command.VERSION: Shape(1, at.VERSION, at.VERSION, request_tail="json", reply_tail="json", fds="reply"),
    Command.DMA_MAP: Shape(2, at.DMA_MAP, fds="request"),
    Command.DMA_UNMAP: Shape(3, at.DMA_UNMAP, at.DMA_UNMAP, request_tail="bitmap", reply_tail="bitmap"),
    Command.GET_INFO: Shape(4, at.DEVICE_INFO, at.DEVICE_INFO),
    Command.GET_REGION_INFO: Shape(5, at.REGION_INFO, at.REGION_INFO, reply_tail="capabilities", fds="reply"),
    Command.GET_REGION_IO_FDS: Shape(6, at.REGION_IO_FDS, at.REGION_IO_FDS, reply_tail="iofds", fds="reply"),
    Command.GET_IRQ_INFO: Shape(7, at.IRQ_INFO, at.IRQ_INFO),
    Command.SET_IRQS: Shape(8, at.IRQ_SET, request_tail="bools", fds="request"),
    Command.REGION_READ: Shape(9, at.REGION_ACCESS, at.REGION_ACCESS, reply_tail="data"),
    Command.REGION_WRITE: Shape(10, at.REGION_ACCESS, at.REGION_ACCESS, request_tail="data"),
    Command.DMA_READ: Shape(11, at.DMA_ACCESS, at.DMA_ACCESS, _SERVER, reply_tail="data"),
    Command.DMA_WRITE: Shape(12, at.DMA_ACCESS, at.DMA_ACCESS, _SERVER, request_tail="data"),
    Command.DEVICE_RESET: Shape(13),
    Command.REGION_WRITE_MULTI: Shape(15, at.WRITE_MULTI, at.WRITE_MULTI, request_tail="writes"),
    Command.DEVICE_FEATURE: Shape(16, at.FEATURE, at.FEATURE, request_tail="feature", reply_tail="feature"),
    Command.MIG_DATA_READ: Shape(17, at.MIGRATION_DATA, at.MIGRATION_DATA, reply_tail="data"),
    Command.MIG_DATA_WRITE: Shape(18, at.MIGRATION_DATA, request_tail="data"),
}

_DRAFT_CAPABILITIES = frozenset({"max_msg_fds", "migration_pgsize"})

CURRENT = Dialect(
    name="current",
    shapes=_CURRENT,
    fds_capability="max_msg_fds",
    capabilities=ALL,
    minor=2,
    overlap_errno=errno.EINVAL,
    write_reply_counts=True,
    region_info_needs_argsz=True,
    migration_region=False,
)

_DMA_32 = {
    Command.DMA_READ: replace(_CURRENT[Command.DMA_READ], request=at.DMA_ACCESS_32, reply=at.DMA_ACCESS_32),
    Command.DMA_WRITE: replace(_CURRENT[Command.DMA_WRITE], request=at.DMA_ACCESS_32, reply=None),
}

DRAFT_V6 = Dialect(
    name="draft-v6",
    shapes={
        Command.VERSION: replace(_CURRENT[Command.VERSION], fds=""),
        Command.DMA_MAP: Shape(2, None, None, request_tail="dma-entries", fds="request"),
        Command.DMA_UNMAP: Shape(3, None, None, request_tail="dma-entries", reply_tail="dma-bitmaps"),
        Command.GET_INFO: Shape(4, None, at.DEVICE_INFO),
        Command.GET_REGION_INFO: _CURRENT[Command.GET_REGION_INFO],
        Command.GET_IRQ_INFO: replace(_CURRENT[Command.GET_IRQ_INFO], number=6),
        Command.SET_IRQS: replace(_CURRENT[Command.SET_IRQS], number=7),
        Command.REGION_READ: replace(_CURRENT[Command.REGION_READ], number=8),
        Command.REGION_WRITE: replace(_CURRENT[Command.REGION_WRITE], number=9),
        Command.DMA_READ: replace(_DMA_32[Command.DMA_READ], number=10),
        Command.DMA_WRITE: replace(_DMA_32[Command.DMA_WRITE], number=11, reply=at.DMA_ACCESS_32),
        Command.VM_INTERRUPT: Shape(12, at.VM_INTERRUPT, None, _SERVER),
        Command.DEVICE_RESET: Shape(13),
        Command.DIRTY_PAGES: Shape(
            14, at.DIRTY_PAGES, at.DIRTY_PAGES, request_tail="dirty-ranges", reply_tail="dirty-bitmaps"
        ),
    },
    fds_capability="max_fds",
    capabilities=_DRAFT_CAPABILITIES,
    minor=1,
    overlap_errno=errno.EEXIST,
    write_reply_counts=False,
    region_info_needs_argsz=False,
    migration_region=True,
)

_MIGRATION_V2 = (Command.DEVICE_FEATURE, Command.MIG_DATA_READ, Command.MIG_DATA_WRITE)

REGION_MIGRATION = Dialect(
    name="region-migration",
    shapes={
        **{command: shape for command, shape in _CURRENT.items() if command not in _MIGRATION_V2},
        Command.DIRTY_PAGES: Shape(
            14, at.DIRTY_PAGES, at.DIRTY_PAGES, request_tail="dirty-ranges", reply_tail="dirty-bitmaps"
        ),
    },
    fds_capability="max_msg_fds",
    capabilities=ALL,
    minor=2,
    overlap_errno=errno.EINVAL,
    write_reply_counts=True,
    region_info_needs_argsz=True,
    migration_region=True,
)

CURRENT_DMA_32 = replace(CURRENT, name="current-dma32", shapes={**_CURRENT, **_DMA_32})
"""`current` as QEMU 10.1 and 10.2 speak it: 32-bit counts in DMA messages, and DMA_WRITE answered by a header."""

REGION_MIGRATION_DMA_32 = replace(
    REGION_MIGRATION, name="region-migration-dma32", shapes={**REGION_MIGRATION.shapes, **_DMA_32}
)
"""`region-migration` as QEMU forks of 2022 speak it: their DMA messages and libvfio-user's do not fit together."""

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        dialect.name: dialect
        for dialect in (CURRENT, DRAFT_V6, REGION_MIGRATION, CURRENT_DMA_32, REGION_MIGRATION_DMA_32)
    }
)


def dialect_named(name: str) -> Dialect:
    """The dialect of that name.

    Raises:
        UserError: there is none.
    """
    if name not in DIALECTS:
        raise UserError(f"unknown dialect {name!r}", hint=f"there are: {', '.join(DIALECTS)}")
    return DIALECTS[name]
