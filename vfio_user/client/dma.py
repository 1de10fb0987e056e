"""DMA: giving guest memory to the device, taking it away, and learning what was written meanwhile (v1 messages)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from userdev.errors import ProtocolError
from userdev.memory.bitmap import DirtyBitmap, bitmap_size
from vfio_user.client.channel import Pending
from vfio_user.client.connection import ClientConnection
from vfio_user.client.memory import GuestMemory, Mapping
from vfio_user.wire import Command
from vfio_user.wire.constants import DirtyPagesFlags, DmaFlags, DmaFlagsV6, UnmapFlags
from vfio_user.wire.layouts import (
    BITMAP,
    BITMAP_V6,
    DIRTY_PAGES,
    DIRTY_RANGE,
    DIRTY_RANGE_V6,
    DMA_ENTRY_V6,
    DMA_MAP,
    DMA_UNMAP,
)

READ_WRITE = DmaFlags.READ | DmaFlags.WRITE


class DmaCalls(ClientConnection):
    """DMA_MAP, DMA_UNMAP and DIRTY_PAGES, in whatever layout the dialect has."""

    @property
    def dma_tables(self) -> bool:
        """Whether one DMA_MAP or DMA_UNMAP carries a table of ranges, as the draft has it."""
        return self.dialect.shapes[Command.DMA_MAP].request is None

    def dma_map(
        self,
        iova: int,
        memory: GuestMemory,
        *,
        offset: int = 0,
        size: int | None = None,
        flags: int = READ_WRITE,
    ) -> Mapping:
        """Let the device reach `size` bytes (None: all) of `memory` from `offset` on, at `iova`.

        Memory without a descriptor, or a transport that carries none, means that the server has to ask for it.
        """
        mapping = Mapping(iova, memory.size - offset if size is None else size, memory, offset, flags)
        self.dma_map_all([mapping])
        return mapping

    def dma_map_all(self, mappings: Sequence[Mapping]) -> None:
        """Map several ranges: one table in the draft, or as many as the server's limit of descriptors asks for; else as
        many messages, sent without waiting as QEMU does.

        Raises:
            RemoteError: the server refuses one; of the others those are mapped that it did not.
        """
        if self.dma_tables:
            for table in self._tables(mappings):
                fds = [fd for m in table if (fd := self._fd(m)) is not None]
                self.request(Command.DMA_MAP, b"".join(self._entry(m) for m in table), fds)
                for mapping in table:
                    self.memory.add(mapping)
        else:
            pending = [self._submit_map(m) for m in mappings]
            self.gather_good(Command.DMA_MAP, pending, lambda place, _: self.memory.add(mappings[place]))

    def dma_unmap(self, iova: int, size: int, *, page_size: int = 0) -> DirtyBitmap | None:
        """Take a range away; with `page_size` also return which of its pages the server wrote."""
        bits = bitmap_size(size, page_size) if page_size else 0
        if self.dma_tables:
            found = self._unmap_entry(iova, size, page_size, bits)
        else:
            found = self._unmap(iova, size, page_size, bits)
        self.memory.remove(iova, size)
        return DirtyBitmap(iova, page_size, found) if page_size else None

    def dma_unmap_each(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Take several ranges (address, size) away, sent without waiting; raises as `dma_map_all`."""
        if self.dma_tables:
            self.request(Command.DMA_UNMAP, b"".join(DMA_ENTRY_V6.pack(*each, 0, 0, 0) for each in ranges))
            for each in ranges:
                self.memory.remove(*each)
        else:
            asked = [DMA_UNMAP.pack(DMA_UNMAP.size, 0, *each) for each in ranges]
            pending = self.submit_all(Command.DMA_UNMAP, asked)
            self.gather_good(Command.DMA_UNMAP, pending, lambda place, _: self.memory.remove(*ranges[place]))

    def dma_unmap_all(self) -> None:
        """Take everything away: the ALL flag, or a table of every range where the dialect has no such flag."""
        if not self.dma_tables:
            self.request(Command.DMA_UNMAP, DMA_UNMAP.pack(DMA_UNMAP.size, UnmapFlags.ALL, 0, 0))
        elif len(self.memory):
            entries = (DMA_ENTRY_V6.pack(m.iova, m.size, m.offset, 0, 0) for m in self.memory)
            self.request(Command.DMA_UNMAP, b"".join(entries))
        self.memory.clear()

    # dirty pages, v1

    def start_dirty_pages(self) -> None:
        """Log from now on which pages the server writes, in pages of the negotiated `migration.pgsize`."""
        self.request(Command.DIRTY_PAGES, DIRTY_PAGES.pack(DIRTY_PAGES.size, DirtyPagesFlags.START))

    def stop_dirty_pages(self) -> None:
        """End the dirty log (DIRTY_PAGES, STOP)."""
        self.request(Command.DIRTY_PAGES, DIRTY_PAGES.pack(DIRTY_PAGES.size, DirtyPagesFlags.STOP))

    def dirty_pages(self, iova: int, size: int, page_size: int = 4096) -> DirtyBitmap:
        """The pages of a range that the server wrote since it was last asked; asking clears them."""
        bits = bitmap_size(size, page_size)
        if self.dma_tables:
            range_ = DIRTY_RANGE_V6.pack(iova, size, page_size, bits, 0)
            argsz = DIRTY_PAGES.size + DIRTY_RANGE_V6.size
        else:
            range_ = DIRTY_RANGE.pack(iova, size, page_size, bits)
            argsz = DIRTY_PAGES.size + DIRTY_RANGE.size + bits
        request = DIRTY_PAGES.pack(argsz, DirtyPagesFlags.GET_BITMAP, tail=range_)
        payload = self.request(Command.DIRTY_PAGES, request).payload
        if len(payload) < bits or (bits and len(payload) - bits not in self._dirty_reply_sizes()):
            raise ProtocolError(f"DIRTY_PAGES: {len(payload)} bytes in a reply whose bitmap has {bits}")
        return DirtyBitmap(iova, page_size, payload[len(payload) - bits :])

    def _dirty_reply_sizes(self) -> tuple[int, ...]:
        """Bytes in front of the bitmap. The draft does not say whether the request's structures come first."""
        if self.dma_tables:
            return (BITMAP_V6.size, DIRTY_PAGES.size + DIRTY_RANGE_V6.size)
        return (DIRTY_PAGES.size + DIRTY_RANGE.size,)

    # the layouts

    def _fd(self, mapping: Mapping) -> int | None:
        return mapping.memory.fd if self.fds_per_message else None

    def _tables(self, mappings: Sequence[Mapping]) -> Iterator[list[Mapping]]:
        """The mappings in order, in tables of no more descriptors than the server takes."""
        table: list[Mapping] = []
        fds = 0
        for mapping in mappings:
            has_fd = self._fd(mapping) is not None
            if fds + has_fd > self.fds_per_message:
                yield table
                table, fds = [], 0
            table.append(mapping)
            fds += has_fd
        yield table

    def _submit_map(self, mapping: Mapping) -> Pending:
        fd = self._fd(mapping)
        offset = 0 if fd is None else mapping.offset
        request = DMA_MAP.pack(DMA_MAP.size, mapping.flags, offset, mapping.iova, mapping.size)
        return self.submit(Command.DMA_MAP, request, [] if fd is None else [fd])

    def _entry(self, mapping: Mapping) -> bytes:
        fd = self._fd(mapping)
        flags = 0 if fd is None else DmaFlagsV6.MAPPABLE
        protections = mapping.flags & READ_WRITE  # PROT_READ and PROT_WRITE have the same bits
        return DMA_ENTRY_V6.pack(mapping.iova, mapping.size, 0 if fd is None else mapping.offset, protections, flags)

    def _unmap(self, iova: int, size: int, page_size: int, bits: int) -> bytes:
        head = DMA_UNMAP.size
        flags = 0
        tail = b""
        if page_size:
            head += BITMAP.size
            flags = UnmapFlags.GET_DIRTY_BITMAP
            tail = BITMAP.pack(page_size, bits)
        reply = self.request(Command.DMA_UNMAP, DMA_UNMAP.pack(head + bits, flags, iova, size, tail=tail))
        if page_size and len(reply.payload) != head + bits:
            raise ProtocolError(f"DMA_UNMAP: a reply of {len(reply.payload)} bytes where {head + bits} are right")
        return reply.payload[head:]

    def _unmap_entry(self, iova: int, size: int, page_size: int, bits: int) -> bytes:
        flags = UnmapFlags.GET_DIRTY_BITMAP if page_size else 0
        entry = DMA_ENTRY_V6.pack(iova, size, 0, 0, flags)
        if page_size:
            entry += BITMAP_V6.pack(page_size, bits, 0)
        payload = self.request(Command.DMA_UNMAP, entry).payload
        if not page_size:
            return b""
        if len(payload) != BITMAP_V6.size + bits:
            raise ProtocolError(f"DMA_UNMAP: a reply of {len(payload)} bytes where {BITMAP_V6.size + bits} are right")
        return payload[BITMAP_V6.size :]
