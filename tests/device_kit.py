"""What only our tests of devices need: numbers by PCI's names, a device that interrupts in each way, descriptors."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vfio_user import IntX, Msi, MsiX, PciDevice, PciIds
from vfio_user.wire.constants import IrqSetFlags

INTX, MSI, MSIX, ERR, REQ = range(5)
TRIGGER, MASK, UNMASK = IrqSetFlags.TRIGGER, IrqSetFlags.MASK, IrqSetFlags.UNMASK
NONE, BOOL, EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD
CONFIG = 7


class Ringer(PciDevice):
    """Each way to interrupt: a line, and four vectors of either kind of message."""

    ids = PciIds(vendor=1, device=2)
    interrupts = IntX() | Msi(4, maskable=True) | MsiX(4)


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
