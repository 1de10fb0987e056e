"""Memory that a device declares, in files: one for each BAR that a client may map, and one for all the rest."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import cast

from userdev.declare.authors_code import assigned_at
from userdev.declare.declared import Declaration, no_flag
from userdev.errors import ProtocolError
from vfio_user.migration import Memfd, MemfdMemory

PAGE = 4096


class DeclaredMemory(Declaration):
    """Declared memory; the instance has a writable memoryview of `size` bytes in its place."""

    def __init__(self, size: int, bar: int | None, offset: int, mmap: bool, keep: bool) -> None:
        super().__init__()
        self.size = size
        self.bar = bar
        self.offset = offset
        self.mmap = mmap
        self.keep = keep

    def mistake(self) -> str:
        """The mistake in size and place, in a sentence; "" where there is none."""
        place = (self.size, self.offset, 0 if self.bar is None else self.bar)
        if any(type(each) is not int or each < 0 for each in place) or not self.size:
            return (
                f"memory has a byte at least, and a place: not {self.size!r} bytes at {self.offset!r} of {self.bar!r}"
            )
        if wrong := no_flag(mmap=self.mmap, keep=self.keep):
            return wrong
        if self.mmap and (self.bar is None or self.size % PAGE or self.offset % PAGE):
            return f"memory that a client may map is in a BAR, and whole pages of {PAGE} bytes at a page's offset"
        return ""


def memory(size: int, *, bar: int | None = None, offset: int = 0, mmap: bool = False, keep: bool = False) -> memoryview:
    """Declare memory of the device: `ram: memoryview = memory(0x1000, bar=2)`; zero after reset unless `keep`.

    bar: the BAR, or device-specific region, that shows it from `offset` on; None: the device's private memory.
    mmap: the client may map it, so that its accesses are not seen here; whole pages (4096) only.
    """
    return cast(memoryview, DeclaredMemory(size, bar, offset, mmap, keep))


class DeviceMemory:
    """The memory that reset clears, migration moves and the client may map. It costs what was used of it."""

    def __init__(self) -> None:
        self.all: list[MemfdMemory] = []
        self._cleared: list[MemfdMemory] = []
        self._files: list[Memfd] = []

    def place_mappable(self, bar: int, size: int, areas: Iterable[DeclaredMemory]) -> Memfd:
        """Put areas of a BAR of `size` bytes where they are in it; returns the file that the client maps."""
        areas = list(areas)
        file = self._file(f"vfio-user-region{bar}", size, areas)
        for area in areas:
            self._add(area, file, area.offset)
        return file

    def place_rest(self, areas: list[DeclaredMemory]) -> None:
        """Put areas that nobody maps, each from a page on."""
        offsets = [0]
        for area in areas:
            offsets.append(offsets[-1] + -(-area.size // PAGE) * PAGE)
        if areas:
            file = self._file("vfio-user-memory", offsets[-1], areas)
            for area, offset in zip(areas, offsets, strict=False):
                self._add(area, file, offset)

    def reset(self) -> None:
        """Zeros, but for what is kept: the pages go, whoever has them mapped."""
        for memory in self._cleared:
            memory.clear(0, memory.size)

    def check(self, device: object) -> None:
        """Look whether every attribute is still the memory that was declared.

        Raises:
            ProtocolError: EIO, one is not.
        """
        for memory in self.all:
            if getattr(device, memory.name) is not memory.view:
                name = memory.name
                raise ProtocolError(
                    f"{type(device).__name__} cannot be saved: {name} is not the declared memory any more; "
                    f"write into it, as {name}[:] = ...{assigned_at(type(device), name)}",
                    errno.EIO,
                )

    def close(self) -> None:
        """Give back the files; an author's further views keep the memory itself alive."""
        for memory in self.all:
            memory.view.release()
        for file in self._files:
            file.close()
        self.all.clear()
        self._cleared.clear()
        self._files.clear()

    def _file(self, name: str, size: int, areas: Iterable[DeclaredMemory]) -> Memfd:
        """A file for these areas.

        Raises:
            ValueError: it cannot be had, as where it is larger than what a process can address.
        """
        try:
            self._files.append(Memfd(name, size))
        except (OSError, OverflowError) as error:
            names = ", ".join(area.name for area in areas)
            raise ValueError(f"{size:#x} bytes for {names} cannot be had: {error}") from None
        return self._files[-1]

    def _add(self, area: DeclaredMemory, file: Memfd, offset: int) -> None:
        memory = MemfdMemory(area.name, file, offset, area.size)
        self.all.append(memory)
        if not area.keep:
            self._cleared.append(memory)
