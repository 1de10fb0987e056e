"""A client's side for tests of devices without a socket: a link that remembers, eventfds, memory files."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from userdev.errors import ProtocolError
from vfio_user.device import PciDevice, function_of
from vfio_user.device.irq_wiring import IrqRequest
from vfio_user.wire.constants import IrqSetFlags

INTX, MSI, MSIX, ERR, REQ = range(5)
TRIGGER, MASK, UNMASK = IrqSetFlags.TRIGGER, IrqSetFlags.MASK, IrqSetFlags.UNMASK
NONE, BOOL, EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD
CONFIG = 7


@dataclass
class Client:
    """A link to a client with a little memory of its own, served by messages."""

    in_band_interrupts: bool = False
    memory: bytearray = field(default_factory=lambda: bytearray(0x4000))
    base: int = 0
    interrupts: list[tuple[int, int]] = field(default_factory=list)
    deferred: list[Callable[[], None]] = field(default_factory=list)
    planned: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    watched: dict[int, Callable[[], None]] = field(default_factory=dict)
    messages: int = 0

    def dma_read(self, iova: int, count: int) -> bytes:
        self.messages += 1
        return bytes(self.memory[self._at(iova, count) : self._at(iova, count) + count])

    def dma_write(self, iova: int, data: bytes | memoryview) -> None:
        self.messages += 1
        at = self._at(iova, len(data))
        self.memory[at : at + len(data)] = data

    def interrupt(self, index: int, vector: int) -> None:
        self.interrupts.append((index, vector))

    def defer(self, work: Callable[[], None]) -> None:
        self.deferred.append(work)

    def call_soon(self, work: Callable[[], None]) -> None:
        self.deferred.append(work)

    def call_later(self, seconds: float, work: Callable[[], None]) -> Callable[[], None]:
        planned = (seconds, work)
        self.planned.append(planned)
        return lambda: self.planned.remove(planned) if planned in self.planned else None

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        self.watched[fd] = ready

    def unwatch(self, fd: int) -> None:
        del self.watched[fd]

    def end_batch(self) -> None:
        """The replies are sent; what was deferred runs."""
        work, self.deferred = self.deferred, []
        for each in work:
            each()

    def _at(self, iova: int, count: int) -> int:
        at = iova - self.base
        if not 0 <= at <= len(self.memory) - count:
            raise ProtocolError("the client has nothing there", errno.ENODEV)
        return at


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
    """SET_IRQS; the device takes the descriptors over."""
    device.interrupts.set_irqs(IrqRequest(index, start, count, action, data, bools, list(fds)))


class Wires:
    """Eventfds of a client: what the device has, and what the client sees of them."""

    def __init__(self, device: PciDevice, index: int, count: int = 1, start: int = 0, flags: int = os.EFD_NONBLOCK):
        self.fds = [os.eventfd(0, flags) for _ in range(count)]
        set_irqs(device, index, start, count, TRIGGER, EVENTFD, fds=[os.dup(fd) for fd in self.fds])

    def fired(self) -> list[int]:
        """How often each vector fired since the last look."""
        return [_counter(fd) for fd in self.fds]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


def _counter(fd: int) -> int:
    os.set_blocking(fd, False)
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def memory_file(size: int, content: bytes = b"") -> int:
    """A memfd as QEMU's memory backend has it."""
    fd = os.memfd_create("test")
    os.ftruncate(fd, size)
    os.pwrite(fd, content, 0)
    return fd


def open_fds() -> set[str]:
    """Numbers of the open descriptors, without the one that looks."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process may open so many more files inside, and no others."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, open_fds())) + count + 1, before[1]))
    try:
        while True:
            try:
                taken.append(os.dup(taken[0]))
            except OSError:
                break
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in taken:
            os.close(fd)


def read_int(device: PciDevice, region: int, offset: int, width: int) -> int:
    return int.from_bytes(function_of(device).region_read(region, offset, width), "little")


def write_int(device: PciDevice, region: int, offset: int, width: int, value: int) -> None:
    function_of(device).region_write(region, offset, value.to_bytes(width, "little"))


def capability(device: PciDevice, id: int) -> int:
    """Where a capability is, found as a guest finds it: by walking the chain."""
    offset = read_int(device, CONFIG, 0x34, 1)
    while offset:
        if read_int(device, CONFIG, offset, 1) == id:
            return offset
        offset = read_int(device, CONFIG, offset + 1, 1)
    raise AssertionError(f"no capability {id:#x}")
