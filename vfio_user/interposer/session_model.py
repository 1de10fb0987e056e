"""What the interposer knows of a session, from the messages of both sides alone.

The model changes when an exchange has succeeded (the reply is there, without error), or at once where no reply is
wanted: so it is what the server holds, and what a new server has to be told to take the old one's place.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from userdev.descriptors import FdStore, FileKey, file_key
from userdev.errors import ProtocolError
from userdev.memory.intervals import IntervalMap
from vfio_user.interposer.unmapped import FileRange, UnmappedMemory
from vfio_user.wire import Command, Dialect, Message, Proposal, decode_version
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import (
    FEATURE_MASK,
    MIGRATION_REGION_TYPE,
    MOST_VECTORS,
    DmaFlags,
    DmaFlagsV6,
    Feature,
    FeatureFlags,
    IrqSetFlags,
    RegionIndex,
    UnmapFlags,
)
from vfio_user.wire.constants import MigrationState as State
from vfio_user.wire.region_info import RegionDescription, decode_region_info
from vfio_user.wire.unmap_table import unmap_table

MAX_INDEXES = 64
"""Interrupt indexes that are followed: PCI has 5. Posted requests may name any other, as nobody refuses them."""
MAX_CONFIG_WRITES = 4096
"""Writes of config space that are kept for another server, none within a later one: it has 4096 bytes."""
CONFIG_REGION = struct.pack("<I", RegionIndex.CONFIG)
_HOT = (Command.REGION_READ, Command.REGION_WRITE, Command.DMA_READ, Command.DMA_WRITE)


@dataclass(frozen=True)
class DmaMapping:
    """One range of guest memory. `fd` is -1 where the range is reached by messages only."""

    iova: int
    size: int
    flags: int
    offset: int
    fd: int
    protections: int = DmaFlags.READ | DmaFlags.WRITE
    """What the server may do there: of the draft's table entries, elsewhere of `flags`, in the same bits."""

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.iova + self.size

    @property
    def written_directly(self) -> bool:
        """Whether the server can write here without a message."""
        return self.fd >= 0 and bool(self.protections & DmaFlags.WRITE)

    def part(self, iova: int, end: int, fd: int) -> DmaMapping:
        """A part of this range, with a descriptor of its own."""
        return replace(self, iova=iova, size=end - iova, offset=self.offset + iova - self.iova, fd=fd)


@dataclass
class Irqs:
    """One interrupt index as it was set up."""

    eventfds: dict[int, int] = field(default_factory=dict)
    """Vector: descriptor to signal."""
    unmask: dict[int, int] = field(default_factory=dict)
    """Vector: descriptor that unmasks it (INTx resampling)."""
    masked: set[int] = field(default_factory=set)


class SessionModel:
    """The state of one session. Feed it with `exchanged`; read its attributes.

    The descriptors in it are its own, deduplicated (`FdStore`), and closed by `close`.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.fds = FdStore()
        self.version_request: bytes | None = None
        self.version_reply: bytes | None = None
        self.client: Proposal | None = None
        self.server: Proposal | None = None
        self.maps = IntervalMap[DmaMapping]()
        self.unmapped: UnmappedMemory | None = None
        """While the server logs what it writes."""
        self.irqs: dict[int, Irqs] = {}
        self.regions: dict[int, RegionDescription] = {}
        self.region_files: dict[int, FileKey] = {}
        """By region: which file the client has been given, to map it. Not for those that migrations map anew."""
        self.device_info: bytes | None = None
        self.config_writes: dict[tuple[int, int], bytes] = {}
        """(offset, size): what was last written there, in the order of the last writes. None is in a later one."""
        self.config_image = bytearray(4096)
        """Config space as far as the client has read it."""
        self.config_read = 0
        """Bytes of `config_image` that have been read from the front on."""
        self.migration_state = State.RUNNING
        self.client_migrates = False
        """The client asks for migration itself: nobody has to do it for it."""
        self.incomplete = ""
        """What of the session could not be kept, and why; empty: everything is here."""
        self.resets = 0
        self.bar_accessed = False
        self._numbers = {dialect.number(command) for command in dialect.shapes}
        self._access = {dialect.number(command) for command in (Command.REGION_READ, Command.REGION_WRITE)}
        self._quiet = {dialect.number(command) for command in _HOT}
        self._learn: dict[int, Callable[[Message, Message | None], None]] = {
            dialect.number(command): learn
            for command, learn in (
                (Command.VERSION, self._version),
                (Command.DMA_MAP, self._dma_map),
                (Command.DMA_UNMAP, self._dma_unmap),
                (Command.GET_INFO, self._get_info),
                (Command.GET_REGION_INFO, self._region_info),
                (Command.SET_IRQS, self._set_irqs),
                (Command.REGION_READ, self._region_read),
                (Command.REGION_WRITE, self._region_write),
                (Command.DEVICE_RESET, self._reset),
                (Command.DEVICE_FEATURE, self._feature),
            )
            if command in dialect
        }

    def wants(self, request: Message) -> bool:
        """Whether this request has to be shown with its reply; accesses to BARs, the hot ones, have not."""
        if request.command not in self._quiet:
            return request.command in self._learn
        if request.command in self._access:
            if request.payload[8:12] == CONFIG_REGION:
                return True
            self.bar_accessed = True
        return False

    def exchanged(self, request: Message, reply: Message | None) -> None:
        """A request of the client's and its reply; None where none was wanted. Malformed ones change nothing."""
        learn = self._learn.get(request.command)
        if learn is None or (reply is not None and reply.refuses):
            return
        try:
            learn(request, reply)
        except (ProtocolError, ValueError):
            return
        except OSError as error:
            self.miss(request, error)

    def miss(self, request: Message, why: OSError) -> None:
        """This request cannot be known of, as its descriptors cannot be kept, or there are too many like it."""
        command = self.dialect.command(request.command)
        self.incomplete = self.incomplete or f"{command.value if command else 'a request'}: {why.strerror}"

    @property
    def state(self) -> str:
        """`before-version`, `set-up` (until the first access to a BAR), `running`, or the migration state's name."""
        if self.version_reply is None:
            return "before-version"
        if self.migration_state != State.RUNNING:
            return self.migration_state.name
        return "running" if self.bar_accessed else "set-up"

    def mapping(self, iova: int) -> DmaMapping | None:
        """The mapping that `iova` is in."""
        return self.maps.find(iova)

    def config_to_restore(self) -> Iterator[tuple[int, bytes]]:
        """(offset, data) of the writes that bring a fresh device's config space to where it was."""
        device_control = self._pcie_device_control()
        for (offset, size), data in self.config_writes.items():
            if offset <= device_control + 1 < offset + size:  # a function-level reset must not be asked for again
                where = device_control + 1 - offset
                data = data[:where] + bytes([data[where] & 0x7F]) + data[where + 1 :]
            yield offset, data

    def close(self) -> None:
        """Close the descriptors that were kept, and forget maps and interrupts."""
        self.fds.close()
        self.maps.clear()
        self.irqs.clear()

    # what each command teaches

    def _version(self, request: Message, reply: Message | None) -> None:
        self.version_request = request.payload
        self.version_reply = reply.payload if reply is not None else b""
        self.client = _proposal(self.dialect, request.payload)
        self.server = _proposal(self.dialect, self.version_reply)

    def _dma_map(self, request: Message, _: Message | None) -> None:
        if self.dialect.shapes[Command.DMA_MAP].request is None:
            fds = iter(request.fds)
            for entry in at.DMA_ENTRY_V6.unpack_all(request.payload):
                fd = next(fds, -1) if entry.flags & DmaFlagsV6.MAPPABLE else -1
                self._map(DmaMapping(entry.address, entry.size, entry.flags, entry.offset, fd, entry.protections))
        else:
            asked = at.DMA_MAP.unpack(request.payload)
            fd = request.fds[0] if request.fds else -1
            rights = asked.flags & (DmaFlags.READ | DmaFlags.WRITE)
            self._map(DmaMapping(asked.addr, asked.size, asked.flags, asked.offset, fd, rights))

    def _map(self, asked: DmaMapping) -> None:
        self._unmap(asked.iova)
        self._add(asked)

    def _add(self, asked: DmaMapping) -> None:
        self.maps.add(replace(asked, fd=self.fds.keep(asked.fd) if asked.fd >= 0 else -1))

    def _unmap(self, iova: int) -> None:
        if (mapping := self.maps.starting_at(iova)) is not None:
            self._cut(mapping, mapping.iova, mapping.end)

    def _cut(self, mapping: DmaMapping, start: int, end: int) -> None:
        """Forget what of a mapping is in a range; what is left of it stays."""
        self.maps.remove(mapping.iova)
        for first, last in ((mapping.iova, start), (end, mapping.end)):
            if first < last:
                self._add(mapping.part(first, last, mapping.fd))
        if self.unmapped is not None and mapping.written_directly:
            gone = mapping.part(max(mapping.iova, start), min(mapping.end, end), mapping.fd)
            self.unmapped.add(FileRange(os.fstat(gone.fd).st_ino, gone.offset, gone.size))
        if mapping.fd >= 0:
            self.fds.drop(mapping.fd)

    def _dma_unmap(self, request: Message, _: Message | None) -> None:
        if self.dialect.shapes[Command.DMA_UNMAP].request is None:
            for entry in unmap_table(request.payload):
                self._unmap_within(entry.address, entry.size)
            return
        asked = at.DMA_UNMAP.unpack(request.payload)
        if asked.flags & UnmapFlags.ALL:
            for mapping in self.maps:
                self._unmap(mapping.iova)
        else:
            self._unmap_within(asked.addr, asked.size)

    def _unmap_within(self, iova: int, size: int) -> None:
        exact = self.maps.starting_at(iova)
        if exact is not None and exact.size == size:
            self._unmap(iova)
            return
        for mapping in self.maps.within(iova, iova + size) if size else ():
            self._cut(mapping, iova, iova + size)

    def _get_info(self, _: Message, reply: Message | None) -> None:
        if reply is not None:
            self.device_info = reply.payload

    def _region_info(self, _: Message, reply: Message | None) -> None:
        if reply is not None:
            region, _needed = decode_region_info(reply.payload)
            self.regions[region.index] = region
            if reply.fds and region.type != MIGRATION_REGION_TYPE:
                self.region_files[region.index] = file_key(reply.fds[0])

    def _set_irqs(self, request: Message, _: Message | None) -> None:
        asked = at.IRQ_SET.unpack(request.payload)
        if asked.irq >= MAX_INDEXES:
            return
        irqs = self.irqs.setdefault(asked.irq, Irqs())
        vectors = range(asked.start, min(asked.start + asked.nr_vectors, MOST_VECTORS))
        if asked.flags & IrqSetFlags.DATA_EVENTFD:
            kept = irqs.eventfds if asked.flags & IrqSetFlags.TRIGGER else irqs.unmask
            if not asked.flags & IrqSetFlags.MASK:  # an eventfd that masks: no client of ours has one, nor any server
                self._replace(kept, dict(zip_longest(vectors, request.fds[: len(vectors)], fillvalue=-1)))
        elif asked.flags & IrqSetFlags.TRIGGER:
            if asked.flags & IrqSetFlags.DATA_NONE and not asked.nr_vectors:
                self._replace(irqs.eventfds, dict.fromkeys(list(irqs.eventfds), -1))
                self._replace(irqs.unmask, dict.fromkeys(list(irqs.unmask), -1))
                irqs.masked.clear()
        else:
            meant = _meant(asked.flags, vectors, request.payload[at.IRQ_SET.size :])
            if asked.flags & IrqSetFlags.MASK:
                irqs.masked.update(meant)
            else:
                irqs.masked.difference_update(meant)

    def _replace(self, kept: dict[int, int], fds: dict[int, int]) -> None:
        """Set the descriptors of some vectors; -1 takes one away."""
        for vector, fd in fds.items():
            if vector in kept:
                self.fds.drop(kept.pop(vector))
            if fd >= 0:
                kept[vector] = self.fds.keep(fd)

    def _region_read(self, request: Message, reply: Message | None) -> None:
        if reply is None:
            return
        access = at.REGION_ACCESS.unpack(reply.payload)
        data = reply.payload[at.REGION_ACCESS.size :]
        if access.offset + len(data) <= len(self.config_image):
            self.config_image[access.offset : access.offset + len(data)] = data
            if access.offset <= self.config_read:
                self.config_read = max(self.config_read, access.offset + len(data))

    def _region_write(self, request: Message, _: Message | None) -> None:
        access = at.REGION_ACCESS.unpack(request.payload)
        data = request.payload[at.REGION_ACCESS.size :]
        if access.offset + len(data) > len(self.config_image) or not data:
            return
        end = access.offset + len(data)
        for place in [place for place in self.config_writes if access.offset <= place[0] and sum(place) <= end]:
            del self.config_writes[place]  # nothing of it is left; and the order is that of the last writes
        if len(self.config_writes) >= MAX_CONFIG_WRITES:
            raise OSError(errno.ENOBUFS, "more writes of config space overlap than are kept for another server")
        self.config_writes[access.offset, len(data)] = data

    def _reset(self, _: Message, __: Message | None) -> None:
        self.resets += 1

    def _feature(self, request: Message, reply: Message | None) -> None:
        asked = at.FEATURE.unpack(request.payload)
        feature = asked.flags & FEATURE_MASK
        if feature == Feature.MIGRATION:
            self.client_migrates = True
        elif feature == Feature.MIG_DEVICE_STATE and not asked.flags & FeatureFlags.PROBE:
            self.client_migrates = True
            body = reply.payload if reply is not None and asked.flags & FeatureFlags.GET else request.payload
            self.set_migration_state(at.DEVICE_STATE.unpack(body, at.FEATURE.size).state)

    def set_migration_state(self, state: int) -> None:
        """The device is now in this migration state."""
        self.migration_state = State(state)

    def _pcie_device_control(self) -> int:
        """Offset of Device Control in the PCI Express capability; one that no write reaches where there is none."""
        image = self.config_image
        place, seen = image[0x34] & 0xFC if self.config_read >= 0x40 else 0, 0
        while 0x40 <= place < 0xFF and seen < 48:
            if image[place] == 0x10:
                return place + 8
            place, seen = image[place + 1] & 0xFC, seen + 1
        return len(image)


def _meant(flags: int, vectors: range, bools: bytes) -> Iterable[int]:
    """The vectors that a request without descriptors is about: bytes equal to 1 count, as in libvfio-user (irq.c)."""
    if not flags & IrqSetFlags.DATA_BOOL:
        return vectors
    return [vector for vector, flag in zip(vectors, bools, strict=False) if flag == 1]


def _proposal(dialect: Dialect, payload: bytes) -> Proposal | None:
    try:
        return decode_version(dialect, payload)
    except ProtocolError:
        return None
