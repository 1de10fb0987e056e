"""A device under test in one process: no socket, no thread, no guest.

    with attached(Adder()) as link:
        write_register(link.device, 0, 0, 4, 3)
        assert read_register(link.device, 0, 4, 4) == 7

Accesses go the way of those that a client sends by messages; what a device has its client do is remembered by the link.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from userdev.errors import ProtocolError
from userdev.whole import write_whole
from vfio_user.device import PciDevice, function_of
from vfio_user.device.irq_wiring import IrqRequest
from vfio_user.wire.constants import IrqSetFlags, RegionIndex

__all__ = [
    "RecordingLink",
    "Vectors",
    "attached",
    "find_capability",
    "memory_file",
    "read_register",
    "set_irqs",
    "write_register",
]

CAPABILITY_POINTER = 0x34


@dataclass
class RecordingLink:
    """A client with a little memory of its own, at `base`, which the device reaches by messages.

    What the device defers, posts or plans waits until `run_deferred`, or until the test calls it.
    """

    in_band_interrupts: bool = False
    memory: bytearray = field(default_factory=lambda: bytearray(0x4000))
    base: int = 0
    interrupts: list[tuple[int, int]] = field(default_factory=list)
    """(index, vector) of each interrupt that went as a message."""
    deferred: list[Callable[[], None]] = field(default_factory=list)
    planned: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    """(seconds, work) that the device wants done later."""
    watched: dict[int, Callable[[], None]] = field(default_factory=dict)
    """By descriptor: what is to be called when it is readable."""
    messages: int = 0
    """DMA messages so far."""
    _device: PciDevice | None = None

    @property
    def device(self) -> PciDevice:
        """The device that `attached` gave this client."""
        assert self._device is not None, "this link is nobody's client: use `attached`"
        return self._device

    def dma_read(self, iova: int, count: int) -> bytes:
        """Read out of `memory`, as `Link.dma_read`."""
        self.messages += 1
        return bytes(self.memory[self._at(iova, count) : self._at(iova, count) + count])

    def dma_write(self, iova: int, data: bytes | memoryview) -> None:
        """Write into `memory`, as `Link.dma_write`."""
        self.messages += 1
        at = self._at(iova, len(data))
        self.memory[at : at + len(data)] = data

    def interrupt(self, index: int, vector: int) -> None:
        """Remember an interrupt that goes as a message."""
        self.interrupts.append((index, vector))

    def defer(self, work: Callable[[], None]) -> None:
        """Remember work for after the replies."""
        self.deferred.append(work)

    def call_soon(self, work: Callable[[], None]) -> None:
        """Remember work that was posted."""
        self.deferred.append(work)

    def call_later(self, seconds: float, work: Callable[[], None]) -> Callable[[], None]:
        """Remember work for later; what is returned has it forgotten."""
        planned = (seconds, work)
        self.planned.append(planned)
        return lambda: self.planned.remove(planned) if planned in self.planned else None

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Remember a descriptor to watch."""
        self.watched[fd] = ready

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor."""
        del self.watched[fd]

    def run_deferred(self) -> None:
        """Do what was deferred and posted, in order; what that defers in turn waits for the next call."""
        work, self.deferred = self.deferred, []
        for each in work:
            each()

    def _at(self, iova: int, count: int) -> int:
        at = iova - self.base
        if not 0 <= at <= len(self.memory) - count:
            raise ProtocolError("the client has nothing there", errno.ENODEV)
        return at


@contextmanager
def attached(device: PciDevice, link: RecordingLink | None = None) -> Iterator[RecordingLink]:
    """Be the client of a device for the length of a block: `on_attach` and `on_resume` at its beginning, and at its end
    what the end of a client brings. The device stays usable.
    """
    link = link or RecordingLink()
    link._device = device
    function = function_of(device)
    function.attach(link)
    try:
        yield link
    finally:
        try:
            while link.deferred:  # as a session, which goes on until nothing is left
                link.run_deferred()
        finally:
            function.detach()


def read_register(device: PciDevice, region: int, offset: int, width: int) -> int:
    """Read `width` bytes of a BAR (0 to 5) or of another region, as a little-endian number.

    Raises:
        ProtocolError: what a client's REGION_READ would be refused with.
    """
    return int.from_bytes(function_of(device).region_read(region, offset, width), "little")


def write_register(device: PciDevice, region: int, offset: int, width: int, value: int) -> None:
    """Write a little-endian number of `width` bytes.

    Raises:
        ProtocolError: what a client's REGION_WRITE would be refused with.
    """
    function_of(device).region_write(region, offset, value.to_bytes(width, "little"))


def find_capability(device: PciDevice, id: int) -> int:
    """Where in configuration space a capability is, found as a guest finds it: by walking the chain.

    Raises:
        LookupError: the chain has none of that id.
    """
    offset = read_register(device, RegionIndex.CONFIG, CAPABILITY_POINTER, 1)
    while offset:
        if read_register(device, RegionIndex.CONFIG, offset, 1) == id:
            return offset
        offset = read_register(device, RegionIndex.CONFIG, offset + 1, 1)
    raise LookupError(f"no capability {id:#x}")


def set_irqs(
    device: PciDevice,
    index: int,
    start: int,
    count: int,
    action: IrqSetFlags,
    data: IrqSetFlags,
    bools: bytes = b"",
    fds: Sequence[int] = (),
) -> None:
    """Do what SET_IRQS asks for; the device takes the descriptors over.

    Raises:
        ProtocolError: what the client's message would be refused with.
    """
    device.interrupts.set_irqs(IrqRequest(index, start, count, action, data, bools, list(fds)))


class Vectors:
    """A client's eventfds of `count` vectors from `start` on: what the device triggers, and what is seen of it."""

    def __init__(self, device: PciDevice, index: int, count: int = 1, start: int = 0, flags: int = os.EFD_NONBLOCK):
        self.fds = [os.eventfd(0, flags) for _ in range(count)]
        copies = [os.dup(fd) for fd in self.fds]
        set_irqs(device, index, start, count, IrqSetFlags.TRIGGER, IrqSetFlags.DATA_EVENTFD, fds=copies)

    def fired(self) -> list[int]:
        """How often each vector fired since the last look."""
        return [_counter(fd) for fd in self.fds]

    def close(self) -> None:
        """Close the client's descriptors; the device has its own."""
        for fd in self.fds:
            os.close(fd)


def _counter(fd: int) -> int:
    os.set_blocking(fd, False)
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def memory_file(size: int, content: bytes = b"") -> int:
    """Make a memfd as QEMU's memory backend has it, to be mapped by `device.dma.map`."""
    fd = os.memfd_create("guest memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        write_whole(fd, content, 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except BaseException:
        os.close(fd)
        raise
    return fd
