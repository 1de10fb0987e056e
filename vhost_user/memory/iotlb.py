"""The IOTLB: what an IOMMU makes of the guest's addresses, as the front-end says ("IOMMU support").

With ACCESS_PLATFORM, descriptors and rings have I/O virtual addresses. One that is not known is an `IotlbMiss`: no
mistake, but a question to be asked on the back-end channel, after whose answer the access is tried again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from itertools import pairwise
from typing import Final

from userdev.errors import ProtocolError, UserdevError
from vhost_user.memory.table import GuestRange, MemoryTable
from vhost_user.wire.payloads import IotlbMessage, IotlbType, Permission

MAX_ENTRIES: Final = 65536
"""A guest maps by 4 KiB pages at worst: 256 MiB of buffers at a time, which then are asked for anew."""


class IotlbMiss(UserdevError):
    """An address whose translation is not known, or not for what is to be done with it."""

    def __init__(self, iova: int, permission: Permission) -> None:
        super().__init__(f"no translation of {iova:#x} to be used for {permission!r}")
        self.iova = iova
        self.permission = permission

    @property
    def message(self) -> IotlbMessage:
        """The message that asks the front-end for the translation."""
        return IotlbMessage(self.iova, 0, 0, self.permission, IotlbType.MISS)


_MOST: Final = 1 << 64

Entry = tuple[int, int, int, int]
"""(iova, bytes, the front-end's address, permission)"""


class Iotlb:
    """Translations of one connection, kept until they are taken back; none overlap.

    A change counts as one of `table` (its `generation`), so that rings look their own addresses up again.
    """

    def __init__(self, table: MemoryTable) -> None:
        self._table = table
        self._entries: list[Entry] = []
        self.by_guest_address = False
        """Whether updates have the guest's addresses rather than the front-end's (GPA_ADDRESSES)."""

    def __len__(self) -> int:
        return len(self._entries)

    def handle(self, message: IotlbMessage) -> None:
        """Do what IOTLB_MSG of the front-end says.

        Raises:
            ProtocolError: it is about memory that is in no region, or is no message for a back-end.
        """
        iova, size, user, permissions, kind = message
        if iova + size > _MOST:
            raise ProtocolError(f"an IOTLB message about {size:#x} bytes at {iova:#x}")
        match kind:
            case IotlbType.UPDATE:
                if not size or permissions not in range(1, 4):
                    raise ProtocolError(f"a translation of {size:#x} bytes at {iova:#x}, permissions {permissions}")
                self._ranges(user, size)
                self._drop(iova, size)
                if len(self._entries) >= MAX_ENTRIES:
                    self._entries.clear()
                insort(self._entries, (iova, size, user, permissions))
            case IotlbType.INVALIDATE:
                self._drop(iova, size or _MOST)  # the size of all there is does not fit into 64 bits
            case _:
                raise ProtocolError(f"an IOTLB message of type {kind} from the front-end")
        self._table.generation += 1

    def would_forget(self, message: IotlbMessage) -> bool:
        """Whether `handle` would forget translations that something may be using."""
        if message.type == IotlbType.UPDATE and len(self._entries) < MAX_ENTRIES:
            first, end = self._overlapping(message.iova, message.size)
            return first < end
        return bool(self._entries)

    def translate(self, iova: int, size: int, permission: Permission) -> list[GuestRange]:
        """The places in the guest's memory of the bytes at an address of its devices.

        Raises:
            IotlbMiss: for the first address that is not known for this use.
            ProtocolError: a translation leads to memory that is gone.
        """
        ranges: list[GuestRange] = []
        while size:
            index = bisect_right(self._entries, (iova, _MOST)) - 1
            first, length, user, allowed = self._entries[index] if index >= 0 else (0, 0, 0, 0)
            if iova >= first + length or permission & ~allowed:
                raise IotlbMiss(iova, permission)
            here = min(size, first + length - iova)
            ranges += self._ranges(user + iova - first, here)
            iova, size = iova + here, size - here
        return ranges

    def view(self, iova: int, size: int, permission: Permission) -> memoryview:
        """The bytes at an address of the guest's devices, which are to be in one piece of memory, as a ring's are.

        Raises:
            IotlbMiss: their translation is not known.
            ProtocolError: they are not in one piece.
        """
        ranges = self.translate(iova, size, permission)
        if not ranges or any(at + length != after for (at, length), (after, _) in pairwise(ranges)):
            raise ProtocolError(f"{size:#x} bytes at {iova:#x} are not in one piece of memory")
        return self._table.view(ranges[0][0], size)

    def clear(self) -> None:
        """Forget all translations."""
        self._entries.clear()
        self._table.generation += 1

    def _ranges(self, address: int, size: int) -> list[GuestRange]:
        if self.by_guest_address:
            self._table.views(address, size)
            return [(address, size)]
        return self._table.user_ranges(address, size)

    def _drop(self, iova: int, size: int) -> None:
        """Forget what overlaps: more than asked for, which costs a question."""
        first, end = self._overlapping(iova, size)
        del self._entries[first:end]

    def _overlapping(self, iova: int, size: int) -> tuple[int, int]:
        """The slice of entries that overlap."""
        entries = self._entries
        first, end = bisect_left(entries, (iova,)), bisect_left(entries, (iova + size,))
        if first and entries[first - 1][0] + entries[first - 1][1] > iova:
            first -= 1
        return first, end
