"""The devices of benchmarks.migration: memory of any size, and as many dirty pages as wanted."""

from __future__ import annotations

from vfio_user.device import Bar, PciDevice, PciIds, memory, register, state

PAGE = 4096
FIRST = 256 << 20
"""IOVA of the first page that is written: the guest is told not to use memory from here on."""


class Dirtier(PciDevice):
    """Writes to register 0 make it write so many pages of the guest's memory, every second one."""

    ids = PciIds(0x1234, 0x11E9, class_code=0x00FF00)
    bars = (Bar(0, size=4096),)

    written: int = state(0)

    @register(bar=0, offset=0x00, width=4)
    def pages(self) -> int:
        return self.written

    @pages.writer
    def _write_pages(self, count: int) -> None:
        for index in range(count):
            self.dma.write_u32(FIRST + 2 * index * PAGE, index + 1)
        self.written = count


def with_memory(size: int) -> type[Dirtier]:
    """A `Dirtier` with so many bytes of state, none of them zero."""

    class Filled(Dirtier):
        store: memoryview = memory(size, keep=True)

        def __init__(self) -> None:
            super().__init__()
            self.store[:] = bytes(range(1, 256)) * (size // 255) + b"\1" * (size % 255)

    return Filled


State1K = with_memory(1 << 10)
State64K = with_memory(64 << 10)
State1M = with_memory(1 << 20)
State16M = with_memory(16 << 20)
State256M = with_memory(256 << 20)
