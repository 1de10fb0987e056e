"""State that a device author declares: reset clears it, migration saves it, the digest covers it.

On an instance a declared value is a plain attribute; nothing stands between a register's handler and its number.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vfio_user.device.declared import Declaration, declarations
from vfio_user.errors import ProtocolError

if TYPE_CHECKING:
    from vfio_user.device.device import PciDevice

T = TypeVar("T")


class State(Declaration):
    """A declared value. Ints, bools, strings, bytes, None, and lists, tuples and dicts of those."""

    def __init__(self, default: object, keep: bool) -> None:
        self.default = default
        self.keep = keep

    def fresh(self) -> object:
        return copy.deepcopy(self.default)

    def check(self, value: object) -> None:
        """A saved value must be of the default's type; None may become anything and anything must not become None."""
        if self.default is not None and type(value) is not type(self.default):
            raise ProtocolError(
                f"saved state: {self.name} is {type(value).__name__}, not {type(self.default).__name__}", errno.EINVAL
            )


class Memory(Declaration):
    """Declared memory; the instance has a writable memoryview of `size` bytes in its place."""

    def __init__(self, size: int, bar: int | None, offset: int, mmap: bool, keep: bool) -> None:
        self.size = size
        self.bar = bar
        self.offset = offset
        self.mmap = mmap
        self.keep = keep


def state(default: T, *, keep: bool = False) -> T:
    """Declare state: `total: int = state(0)`. `keep`: resets leave it alone; migration and digest still cover it."""
    return cast(T, State(default, keep))


def memory(size: int, *, bar: int | None = None, offset: int = 0, mmap: bool = False, keep: bool = False) -> memoryview:
    """Declare memory of the device: `ram: memoryview = memory(0x1000, bar=2)`; zero after reset unless `keep`.

    bar: the BAR, or device-specific region, that shows it from `offset` on; None: the device's private memory.
    mmap: the client may map it, so that its accesses are not seen here; whole pages (4096) only.
    """
    if mmap and (bar is None or size % 4096 or offset % 4096):
        raise ValueError("memory that a client may map is in a BAR, and whole pages at a page's offset")
    return cast(memoryview, Memory(size, bar, offset, mmap, keep))


class Snapshot:
    """Reset, save and load of one device's declared state and memory."""

    def __init__(self, device: PciDevice) -> None:
        self._device = device
        self._values = declarations(type(device), State)
        self._memories = declarations(type(device), Memory)

    def reset(self, *, everything: bool = False) -> None:
        for value in self._values:
            if everything or not value.keep:
                setattr(self._device, value.name, value.fresh())
        if everything:
            return  # memory is made of zeros
        for area in self._memories:
            if not area.keep:
                self._view(area)[:] = bytes(area.size)

    def save(self) -> dict[str, Any]:
        """Copies of the values, by name."""
        return {value.name: copy.deepcopy(getattr(self._device, value.name)) for value in self._values}

    def check(self, values: Mapping[str, Any]) -> None:
        """Raises ProtocolError (EINVAL) unless exactly what is declared is there, of the right types."""
        declared = {value.name for value in self._values}
        if missing := declared - values.keys():
            raise ProtocolError(f"saved state lacks {', '.join(sorted(missing))}", errno.EINVAL)
        if unknown := values.keys() - declared:
            raise ProtocolError(f"saved state has unknown {', '.join(sorted(unknown))}", errno.EINVAL)
        for value in self._values:
            value.check(values[value.name])

    def load(self, values: Mapping[str, Any]) -> None:
        for value in self._values:
            setattr(self._device, value.name, copy.deepcopy(values[value.name]))

    def memories(self) -> list[tuple[str, memoryview]]:
        """The declared memory, by name, in place."""
        return [(area.name, self._view(area)) for area in self._memories]

    def _view(self, area: Memory) -> memoryview:
        view: memoryview = getattr(self._device, area.name)
        return view
