"""The device and its regions: what they are, and reading and writing them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from userdev.errors import ProtocolError, UserError
from userdev.memory.guard import guard
from userdev.memory.shrinking import can_shrink
from userdev.transport import close_all
from vfio_user.client.connection import ClientConnection, at_once
from vfio_user.client.errors import OtherCount, RemoteError, none_refused
from vfio_user.client.reading import read_as
from vfio_user.wire import Command, Message
from vfio_user.wire.constants import MIGRATION_REGION_TYPE, MOST_REGIONS, NO_FD, IoFdType, RegionFlags, RegionIndex
from vfio_user.wire.layouts import (
    DEVICE_INFO,
    IO_FD,
    REGION_ACCESS,
    REGION_INFO,
    REGION_IO_FDS,
    WRITE_MULTI,
    WRITE_MULTI_ENTRY,
    VfioDeviceInfo,
    VfioUserSubRegion,
)
from vfio_user.wire.region_info import RegionDescription, decode_region_info, room_for_all
from vfio_user.wire.state_pieces import write_of


@dataclass(frozen=True)
class Region(RegionDescription):
    """A region, and the descriptor to map it with, which belongs to the client."""

    fd: int | None = None
    descriptors: int = 0
    """How many came with the description; those behind the first were closed."""

    @property
    def mappable(self) -> tuple[tuple[int, int], ...]:
        """Areas (offset in the region, size) that may be mapped."""
        if not self.flags & RegionFlags.MMAP:
            return ()
        return ((0, self.size),) if self.sparse is None else self.sparse


@dataclass(frozen=True)
class IoSubRegion:
    """One entry of GET_REGION_IO_FDS, with real descriptors, which belong to the caller."""

    gpa_offset: int
    size: int
    fd: int | None
    type: int
    flags: int
    shadow_fd: int | None
    shadow_offset: int
    datamatch: int


class RegionCalls(ClientConnection):
    """GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, REGION_READ, REGION_WRITE, REGION_WRITE_MULTI, DEVICE_RESET."""

    def device_info(self) -> VfioDeviceInfo:
        """Ask what the device is (DEVICE_GET_INFO)."""
        wants_struct = self.dialect.shapes[Command.GET_INFO].request is not None
        request = DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0) if wants_struct else b""
        try:
            reply = self.request(Command.GET_INFO, request)
        except RemoteError as error:
            error.request = Command.GET_INFO.value
            raise
        return read_as(DEVICE_INFO, reply.payload, Command.GET_INFO.value)

    def reset(self) -> None:
        """Reset the device (DEVICE_RESET)."""
        self.request(Command.DEVICE_RESET)

    def region_info(self, index: int) -> Region:
        """Describe a region, in two steps where the first reply is not all there is; the draft's servers may do so too.

        The region's descriptor belongs to the client; it is closed when the region is described again.

        Raises:
            ProtocolError: the description is malformed, or says that it has capabilities and has none.
        """
        return none_refused(self.region_infos([index]))[0]

    def region_infos(self, indexes: Sequence[int]) -> Iterator[Region | RemoteError]:
        """Describe several regions, many asked for at once; what is refused has its error there. Else as `region_info`.

        How many there are the server says, which may be a lie: no more are asked for than it answers.
        """
        for some in at_once(indexes):
            replies = self.gather(self.submit_all(Command.GET_REGION_INFO, map(_of_region, some)))
            try:
                for index in some:
                    yield self._description(index, replies.pop(0))
            finally:
                for reply in replies:
                    close_all(reply.fds)

    def regions(self) -> list[Region]:
        """Every region of the device, unused ones with size 0 among them; of those that QEMU would take."""
        return none_refused(self.region_infos(range(min(self.device_info().num_regions, MOST_REGIONS))))

    def map_region(self, region: Region, area: tuple[int, int] | None = None) -> mmap.mmap:
        """Map one area (offset, size) of a region; None is the first that may be mapped. The caller closes it. A server
        that makes its file smaller behind that is survived.

        Raises:
            UserError: the region cannot be mapped.
            ProtocolError: the server says that it can be, and it cannot.
        """
        if region.fd is None or not region.mappable:
            raise UserError(f"region {region.index} cannot be mapped")
        offset, size = region.mappable[0] if area is None else area
        if not size:
            raise ProtocolError(f"region {region.index}: an area of 0 bytes at {offset:#x} is to be mapped")
        try:
            mapped = mmap.mmap(region.fd, size, offset=region.offset + offset)
        except (OSError, ValueError, OverflowError) as error:
            raise ProtocolError(f"region {region.index}: {offset:#x}+{size:#x} cannot be mapped: {error}") from None
        if can_shrink(region.fd):
            guard(mapped)
        return mapped

    def migration_region_index(self) -> int | None:
        """The region of the v1 migration type, where the device has one."""
        found = (r.index for r in self.regions() if r.type == MIGRATION_REGION_TYPE and r.size)
        return next(found, None)

    def io_fds(self, index: int) -> list[IoSubRegion]:
        """GET_REGION_IO_FDS in two steps: what KVM could serve of this region without the server's socket.

        Sub-regions may share a descriptor of the server's: each has one of its own here.
        """
        reply = self.request(Command.GET_REGION_IO_FDS, REGION_IO_FDS.pack(REGION_IO_FDS.size, 0, index, 0))
        try:
            needed = read_as(REGION_IO_FDS, reply.payload, Command.GET_REGION_IO_FDS.value).argsz
            if needed > REGION_IO_FDS.size:
                _give_up(reply)
                reply = self.request(Command.GET_REGION_IO_FDS, REGION_IO_FDS.pack(needed, 0, index, 0))
            entries = list(IO_FD.unpack_all(reply.payload, REGION_IO_FDS.size))
            said = read_as(REGION_IO_FDS, reply.payload, Command.GET_REGION_IO_FDS.value).nr_entries
            if said != len(entries):
                raise ProtocolError(f"GET_REGION_IO_FDS: {said} sub-regions announced, and {len(entries)} came")
            for entry in entries:
                _check_fds(entry, len(reply.fds))
            return [_sub_region(entry, reply.fds) for entry in entries]
        finally:
            _give_up(reply)

    # access

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """Read `count` bytes; exactly that many, or an error."""
        return self.read_reply(self.request(Command.REGION_READ, REGION_ACCESS.pack(offset, region, count)), count)

    def region_write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        """Write all of `data`; `posted` wants no reply, and so never learns of an error."""
        payload = REGION_ACCESS.pack(offset, region, len(data), tail=data)
        if posted:
            self.post(Command.REGION_WRITE, payload)
            return
        reply = self.request(Command.REGION_WRITE, payload, what=write_of(Command.REGION_WRITE.value, len(data)))
        if data and read_as(REGION_ACCESS, reply.payload, Command.REGION_WRITE.value).length not in (0, len(data)):
            raise ProtocolError(f"REGION_WRITE of {len(data)} bytes answered with another count")

    def load(self, region: int, offset: int, width: int) -> int:
        """Read a little-endian register of `width` bytes."""
        return int.from_bytes(self.region_read(region, offset, width), "little")

    def store(self, region: int, offset: int, width: int, value: int, *, posted: bool = False) -> None:
        """Write a little-endian register of `width` bytes."""
        self.region_write(region, offset, value.to_bytes(width, "little"), posted=posted)

    def config_read(self, offset: int, count: int) -> bytes:
        """Read configuration space, in as many messages as the server's limit of data asks for."""
        limit = max(1, self.data_limit)
        if count <= limit:
            return self.region_read(RegionIndex.CONFIG, offset, count)
        pieces = ((RegionIndex.CONFIG, offset + at, min(limit, count - at)) for at in range(0, count, limit))
        return b"".join(self.read_many(pieces))

    def config_write(self, offset: int, data: bytes) -> None:
        """Write configuration space."""
        self.region_write(RegionIndex.CONFIG, offset, data)

    def read_many(self, reads: Iterable[tuple[int, int, int]]) -> list[bytes]:
        """Read several (region, offset, count) without waiting for each: all requests go out first."""
        reads = list(reads)
        pending = [self.submit(Command.REGION_READ, REGION_ACCESS.pack(at, region, n)) for region, at, n in reads]
        found: list[bytes] = []

        def take(place: int, reply: Message) -> None:
            found.append(self.read_reply(reply, reads[place][2]))

        self.gather_good(Command.REGION_READ, pending, take)
        return found

    def write_multi(self, writes: Sequence[tuple[int, int, bytes]], *, posted: bool = False) -> int:
        """Several (region, offset, up to 8 bytes) in one message; how many the server says it did.

        Raises:
            UserError: the server did not offer `write_multiple`.
        """
        if not self.server or not self.server.capabilities.write_multiple:
            raise UserError("the server does not take REGION_WRITE_MULTI")
        entries = b"".join(WRITE_MULTI_ENTRY.struct.pack(at, region, len(data), data) for region, at, data in writes)
        payload = WRITE_MULTI.pack(len(writes), tail=entries)
        if posted:
            self.post(Command.REGION_WRITE_MULTI, payload)
            return len(writes)
        reply = self.request(Command.REGION_WRITE_MULTI, payload)
        return read_as(WRITE_MULTI, reply.payload, Command.REGION_WRITE_MULTI.value).nr_writes

    @staticmethod
    def read_reply(reply: Message, count: int) -> bytes:
        """The data of a REGION_READ's reply.

        Raises:
            ProtocolError: it is not `count` bytes.
        """
        if not count:
            return b""
        length = read_as(REGION_ACCESS, reply.payload, Command.REGION_READ.value).length
        data = reply.payload[REGION_ACCESS.size :]
        if not length == len(data) == count:
            raise OtherCount(count, length, len(data))
        return data

    def _description(self, index: int, reply: Message) -> Region | RemoteError:
        """The region of a first reply; the second step where that is not all."""
        try:
            self.checked(Command.GET_REGION_INFO, reply)
            read_as(REGION_INFO, reply.payload, Command.GET_REGION_INFO.value)
            if (room := room_for_all(reply.payload)) is not None:
                _give_up(reply)
                reply = self.request(Command.GET_REGION_INFO, _of_region(index, room))
            region, _ = decode_region_info(reply.payload)
        except RemoteError as error:
            return error
        except ProtocolError:
            _give_up(reply)
            raise
        close_all(reply.fds[1:])
        fd = reply.fds[0] if reply.fds else None
        if index in self._region_fds:
            close_all([self._region_fds.pop(index)])
        if fd is not None:
            self._region_fds[index] = fd
        described = (region.index, region.size, region.flags, region.offset, region.sparse, region.type)
        return Region(*described, fd, len(reply.fds))


def _give_up(reply: Message) -> None:
    """Close a reply's descriptors, once: another may be about to take its place."""
    fds, reply.fds = reply.fds, []
    close_all(fds)


def _of_region(index: int, argsz: int = REGION_INFO.size) -> bytes:
    return REGION_INFO.pack(argsz, 0, index, 0, 0, 0)


def _shadow(entry: VfioUserSubRegion) -> int:
    return entry.shadow_mem_fd_index if entry.type == IoFdType.IOEVENTFD_SHADOW else NO_FD


def _check_fds(entry: VfioUserSubRegion, count: int) -> None:
    for at in (entry.fd_index, _shadow(entry)):
        if at != NO_FD and at >= count:
            raise ProtocolError(f"GET_REGION_IO_FDS: fd_index {at} of {count} descriptors")


def _sub_region(entry: VfioUserSubRegion, fds: Sequence[int]) -> IoSubRegion:
    shadow = _shadow(entry)
    return IoSubRegion(
        entry.gpa_offset,
        entry.size,
        None if entry.fd_index == NO_FD else os.dup(fds[entry.fd_index]),
        entry.type,
        entry.flags,
        None if shadow == NO_FD else os.dup(fds[shadow]),
        entry.shadow_offset,
        entry.datamatch,
    )
