"""DMA_READ and DMA_WRITE, which only the device can begin: on devices that this module knows how to move.

One is known: edu, whose registers copy between its buffer and guest memory (docs/specs/edu.rst of QEMU).
"""

from __future__ import annotations

from itertools import count
from time import monotonic

from userdev.conformance.check import Group, Level, Skip, require
from vfio_user.client.conformance.bench import Bench
from vfio_user.client.conformance.dma import LOOKED_AT
from vfio_user.client.memory import GuestMemory
from vfio_user.wire import Command
from vfio_user.wire.constants import DmaFlags, Feature

device_dma = Group[Bench](
    "device_dma",
    "protocol.md 9.5: DMA_READ / DMA_WRITE",
    needs=("device_dma/registers", "dma_map/map-and-unmap", *LOOKED_AT),
)

EDU = bytes.fromhex("3412e811")
BASE = 0x10_0000
SIZE = 0x2000
PAGE = 0x1000
BUFFER = 0x40000
_SOURCE, _DESTINATION, _COUNT, _COMMAND = 0x80, 0x88, 0x90, 0x98
_RUN, _TO_RAM = 1, 2
_BUS_MASTER = 1 << 2
_QUICK_LOOKS = 100
"""A device that has done so soon is not waited for; others are looked at now and then, as long as answers may take."""
_PAUSE_SECONDS = 0.01
UNTOUCHED = b"\xa5"
"""What the memory is full of: zeros would not show that zeros were written."""


def _need_edu(bench: Bench) -> None:
    if bench.client.config_read(0, 4) != EDU:
        raise Skip("nothing is known that makes this device do DMA")
    bench.need_dma()


def _edu(bench: Bench, *, flags: int = DmaFlags.READ | DmaFlags.WRITE, shared: bool = False) -> GuestMemory:
    """Guest memory that edu may reach, without a descriptor unless `shared`."""
    _need_edu(bench)
    command = int.from_bytes(bench.client.config_read(4, 2), "little")
    bench.client.config_write(4, (command | _BUS_MASTER).to_bytes(2, "little"))
    memory = bench.memory(SIZE, shared=shared)
    memory.view[:] = UNTOUCHED * SIZE
    bench.client.dma_map(BASE, memory, flags=flags)
    return memory


def _copy(bench: Bench, source: int, destination: int, length: int, direction: int = 0) -> None:
    """Let edu copy, and serve what it asks until it is done."""
    client = bench.client
    for register, value in ((_SOURCE, source), (_DESTINATION, destination), (_COUNT, length)):
        client.store(0, register, 8, value)
    client.store(0, _COMMAND, 8, _RUN | direction)
    require(_comes_to_rest(bench), f"edu is still busy after {bench.timeout:g} s")


def _comes_to_rest(bench: Bench) -> bool:
    client, end = bench.client, monotonic() + bench.timeout
    for look in count():
        if not client.load(0, _COMMAND, 8) & _RUN:
            return True
        if look >= _QUICK_LOOKS:
            if monotonic() >= end:
                break
            client.serve_until(lambda: False, timeout=_PAUSE_SECONDS)
    return False


def _there_and_back(bench: Bench, memory: GuestMemory) -> None:
    """Across a page's border, so that a server that splits there is seen to put it together."""
    data = bytes(range(256)) * 4
    memory.view[0xE00 : 0xE00 + len(data)] = data
    _copy(bench, BASE + 0xE00, BUFFER, len(data))
    _copy(bench, BUFFER, BASE + 0x1500, len(data), _TO_RAM)
    found = bytes(memory.view[0x1500 : 0x1500 + len(data)])
    require(found == data, "what edu read and wrote back is not what was there")
    require(_is_untouched(memory, 0x14F0, 0x1500), "edu wrote in front of its destination")
    require(_is_untouched(memory, 0x1900, 0x1910), "edu wrote behind its destination")


class _DirtyLog:
    """What the device writes of memory, logged in a block, by whichever of the two ways the dialect has."""

    def __init__(self, bench: Bench) -> None:
        self._client = bench.client
        self._by_messages = Command.DEVICE_FEATURE in bench.dialect
        if not self._by_messages:
            bench.need_migration_region()
            return
        bench.need_migration()
        if not self._client.has_feature(Feature.DMA_LOGGING_START):
            raise Skip("the device does not log what it writes")

    def __enter__(self) -> _DirtyLog:
        if self._by_messages:
            self._client.start_logging(PAGE)
        else:
            self._client.start_dirty_pages()
        return self

    def dirty(self, iova: int, size: int) -> list[int]:
        """Where the pages are that were written since they were asked for, those beside the range among them."""
        report = self._client.report_logging if self._by_messages else self._client.dirty_pages
        return report(iova, size, PAGE).pages()

    def __exit__(self, *_: object) -> None:
        if self._by_messages:
            self._client.stop_logging()
        else:
            self._client.stop_dirty_pages()


def _is_untouched(memory: GuestMemory, start: int = 0, stop: int = 16) -> bool:
    return bytes(memory.view[start:stop]) == UNTOUCHED * (stop - start)


@device_dma.check("registers", rule="spec: REGION Read/Write Data")
def registers(bench: Bench) -> None:
    """Registers of 8 bytes that say what is copied are read as they were written."""
    _need_edu(bench)
    for register, value in ((_SOURCE, BASE + 0xE00), (_DESTINATION, BUFFER), (_COUNT, 16)):
        bench.client.store(0, register, 8, value)
        found = bench.client.load(0, register, 8)
        require(found == value, f"edu's register {register:#x} reads {found:#x} after {value:#x} was written")


@device_dma.check("by-message", rule="spec: VFIO_USER_DMA_READ, VFIO_USER_DMA_WRITE")
def by_message(bench: Bench) -> None:
    """Memory without a descriptor is read and written by messages of the dialect's layout."""
    memory = _edu(bench)
    _there_and_back(bench, memory)
    served = bench.client.service.served
    for command in (Command.DMA_READ, Command.DMA_WRITE):
        require(served[command], f"no {command.value} came")


@device_dma.check("by-mapping", rule="spec: DMA Memory Configuration")
def by_mapping(bench: Bench) -> None:
    """Memory with a descriptor is read and written without a message."""
    bench.need_fds()
    memory = _edu(bench, shared=True)
    _there_and_back(bench, memory)
    require(not bench.client.service.asked, "a DMA message came for memory that can be mapped")


@device_dma.check("logged", rule="spec: DMA_LOGGING_START, DMA_LOGGING_REPORT; DIRTY_PAGES")
def logged(bench: Bench) -> None:
    """A page that was written is reported once, and neither one that was read nor one beside the range."""
    bench.need_fds()
    memory = _edu(bench, shared=True)
    memory.view[:16] = bytes(16)  # what edu reads it has for the next check, which is to see it written
    with _DirtyLog(bench) as log:
        _copy(bench, BASE, BUFFER, 16)
        _copy(bench, BUFFER, BASE + PAGE, 16, _TO_RAM)
        found = log.dirty(BASE, PAGE)
        require(not found, f"a page was only read, and {list(map(hex, found))} are reported for it")
        found = log.dirty(BASE, SIZE)
        require(found == [BASE + PAGE], f"page {BASE + PAGE:#x} was written, and {list(map(hex, found))} are reported")
        found = log.dirty(BASE, SIZE)
        require(not found, f"{list(map(hex, found))} are reported again")


@device_dma.check("read-only", level=Level.REFERENCE, rule="protocol.md 9.5: sg not writeable -> EPERM")
def read_only(bench: Bench) -> None:
    """Memory that may only be read is not written."""
    # Mapped, as a message that writes it would be refused here, whatever the device does.
    memory = _edu(bench, flags=DmaFlags.READ, shared=True)
    _copy(bench, BUFFER, BASE, 16, _TO_RAM)
    require(_is_untouched(memory), "memory that may only be read was written")
    bench.client.device_info()


@device_dma.check("refused", level=Level.REFERENCE, rule="protocol.md 9.5: error replies")
def refused(bench: Bench) -> None:
    """A DMA that the client refuses is an error in the device, and the session goes on."""
    _edu(bench)
    bench.client.memory.clear()  # the server believes that it is mapped; each message is answered with ENODEV
    _copy(bench, BUFFER, BASE, 16, _TO_RAM)
    require(bench.client.service.asked[Command.DMA_WRITE], "no DMA_WRITE came")
    bench.client.device_info()


@device_dma.check("unmapped", rule="spec: only memory that the client has configured is accessed")
def unmapped(bench: Bench) -> None:
    """Memory that was taken away is asked for no more, and one that had a descriptor is not touched any more."""
    for shared in (False, True) if bench.client.fds_per_message else (False,):
        memory = _edu(bench, shared=shared)
        bench.client.dma_unmap(BASE, SIZE)
        _copy(bench, BUFFER, BASE, 16, _TO_RAM)
        require(_is_untouched(memory), "memory that was unmapped was written")
        require(not bench.client.service.asked, "a DMA message came for memory that was unmapped")
