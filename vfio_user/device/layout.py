"""From the declarations of a device class to the regions of one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from userdev.declare.declared import declarations
from vfio_user.device.device_memory import DeclaredMemory, DeviceMemory
from vfio_user.device.extra_region import ExtraRegion
from vfio_user.device.hooks import Hooks
from vfio_user.device.mechanism import MsiX
from vfio_user.device.region import Access, MemoryAccess, RegionInfo, RegisterAccess, Windows
from vfio_user.device.register import BaseRegister, Cell, Fit
from vfio_user.pci import BAR_COUNT, SMALLEST_ROM, Bar, MsiXCapability, check_bars, round_up_power_of_two
from vfio_user.wire.constants import RegionFlags, RegionIndex

ROM, CONFIG, VGA = int(RegionIndex.ROM), int(RegionIndex.CONFIG), int(RegionIndex.VGA)
FIRST_EXTRA = VGA + 1
READ_WRITE = int(RegionFlags.READ | RegionFlags.WRITE)
PAGE = 4096

Readers = dict[tuple[int, int, int], Callable[[], int]]
Writers = dict[tuple[int, int, int], Callable[[int], None]]
Fits = dict[tuple[int, int, int], Fit]
"""{(region, offset, width): what to call}"""


def place_msix(msix: MsiX, bars: Sequence[Bar], used: set[int]) -> tuple[MsiXCapability, list[Bar]]:
    """Give the MSI-X table its BAR, and that BAR a size: a page at least."""
    taken = {index for bar in bars for index in range(bar.index, bar.index + bar.bits // 32)} | used
    index = msix.bar
    if index is None:
        index = next((free for free in range(BAR_COUNT) if free not in taken), None)
        if index is None:
            raise ValueError("no BAR is free for the MSI-X table: name one that it can share")
    placed = MsiXCapability(msix.vectors, index, msix.offset, index, msix.pba_offset)
    if index in taken:
        return placed, list(bars)
    return placed, [*bars, Bar(index, round_up_power_of_two(max(PAGE, msix.pba_offset + msix.pba_size)))]


def used_bars(device_class: type) -> set[int]:
    """BARs that registers and memory of the class name."""
    places = [register.place.bar for register in declarations(device_class, BaseRegister)]
    places += [area.bar for area in declarations(device_class, DeclaredMemory) if area.bar is not None]
    return {place for place in places if place < BAR_COUNT}


class RegionLayout:
    """The regions of one device: what is told of them, where accesses go, and the tables of the hot path.

    Raises:
        ValueError: declarations contradict each other: overlaps, a BAR too small, a bad size.
    """

    def __init__(
        self,
        device: Hooks,
        bars: Sequence[Bar],
        extra: Sequence[ExtraRegion],
        reserved: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        """`reserved`: further ranges, (region, offset, size), that `answer` gives to somebody later."""
        self.readers: Readers = {}
        self.writers: Writers = {}
        self.fits: Fits = {}
        self.memory = DeviceMemory()
        cells = [cell for found in declarations(type(device), BaseRegister) for cell in found.cells(device)]
        areas = declarations(type(device), DeclaredMemory)
        named = {cell.region for cell in cells} | {area.bar for area in areas if area.bar is not None}
        named |= {region for region, _offset, _size in reserved}
        indices = [bar.index for bar in bars]
        if twice := sorted({index for index in indices if indices.count(index) > 1}):
            raise ValueError(f"BAR {twice[0]} is declared twice")
        declared = {bar.index: bar for bar in bars} | {
            index: Bar(index) for index in named if index < BAR_COUNT and index not in indices
        }
        check_bars(declared.values())
        self._extra = {region.index: region for region in extra}
        if sorted(self._extra) != list(range(FIRST_EXTRA, FIRST_EXTRA + len(extra))):
            raise ValueError(f"device-specific regions count from {FIRST_EXTRA} without gaps")
        if unknown := named - declared.keys() - self._extra.keys():
            raise ValueError(f"registers or memory are in a region that there is not: {sorted(unknown)}")

        self._windows = {
            index: Windows(index, device.unclaimed_read, device.unclaimed_write)
            for index in declared.keys() | self._extra.keys()
        }
        for cell in cells:
            self._add_cell(cell, exact=cell.region in declared and declared[cell.region].exact)
        for area in areas:
            if area.bar is not None:
                self._windows[area.bar].claim(area.offset, area.size, area.name)
        for index, offset, size in reserved:
            self._windows[index].claim(offset, size, "the MSI-X table")

        self.bars = [self._sized(bar) for bar in declared.values()]
        self.infos = [RegionInfo(index) for index in range(FIRST_EXTRA + len(extra))]
        self.accesses: list[Access | None] = [None] * len(self.infos)
        for bar in self.bars:
            self._describe(bar.index, bar.size, self._windows[bar.index])
        for region in extra:
            self._check_size(region.index, region.size)
            self._describe(region.index, region.size, self._windows[region.index])
            self.infos[region.index].type = region.type
        self._place_memory(areas)
        views = {memory.name: memory.view for memory in self.memory.all}
        device.__dict__.update(views)
        for area in areas:
            if area.bar is not None:
                self.answer(area.bar, area.offset, area.size, MemoryAccess(views[area.name]))

    def answer(self, index: int, offset: int, size: int, access: Access) -> None:
        """Send accesses of a reserved range to `access`."""
        self._windows[index].answer(offset, size, access)

    def add_config(self, size: int, access: Access) -> None:
        """Add the configuration space region, of `size` bytes."""
        self._describe(CONFIG, size, access)

    def add_rom(self, content: bytes) -> int:
        """Returns the ROM's size: a power of two, filled up with zeros."""
        if not content:
            return 0
        size = max(SMALLEST_ROM, round_up_power_of_two(len(content)))
        self._describe(ROM, size, MemoryAccess(memoryview(content.ljust(size, b"\0"))))
        self.infos[ROM].flags = int(RegionFlags.READ)
        return size

    def close(self) -> None:
        """Give back the memory's files."""
        self.memory.close()

    def _describe(self, index: int, size: int, access: Access) -> None:
        info = self.infos[index]
        info.size, info.flags = size, READ_WRITE
        self.accesses[index] = access

    def _add_cell(self, cell: Cell, *, exact: bool) -> None:
        windows, whole = self._windows[cell.region], cell.width
        windows.claim(cell.offset, whole, cell.fit.name)
        if not exact:
            windows.answer(cell.offset, whole, RegisterAccess(cell))
        for width in cell.widths:
            key = (cell.region, cell.offset, width)
            self.readers[key] = cell.read if width == whole else _cut(cell, width)
            self.fits[key] = cell.fit
            self.writers[key] = cell.write

    def _sized(self, bar: Bar) -> Bar:
        if bar.size:
            self._check_size(bar.index, bar.size)
            return bar
        smallest = 4 if bar.io else PAGE
        size = max(smallest, round_up_power_of_two(self._windows[bar.index].end))
        return Bar(bar.index, size, bar.bits, bar.prefetchable, bar.io, bar.exact)

    def _check_size(self, index: int, size: int) -> None:
        if (end := self._windows[index].end) > size:
            windows = self._windows[index]
            raise ValueError(f"{windows.name} has {size:#x} bytes, and {windows.last} reaches to {end:#x}")

    def _place_memory(self, areas: Sequence[DeclaredMemory]) -> None:
        mappable = [area for area in areas if area.mmap and area.bar is not None]
        for index in dict.fromkeys(area.bar for area in mappable if area.bar is not None):
            info, here = self.infos[index], [area for area in mappable if area.bar == index]
            info.fd = self.memory.place_mappable(index, info.size, here).fd
            info.flags |= RegionFlags.MMAP
            info.sparse = tuple((area.offset, area.size) for area in here)
        self.memory.place_rest([area for area in areas if area not in mappable])


def _cut(cell: Cell, width: int) -> Callable[[], int]:
    """A narrow read of a register that is wider."""
    read, fit, mask = cell.read, cell.fit, (1 << 8 * width) - 1
    return lambda: fit(read()) & mask
