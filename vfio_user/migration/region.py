"""The v1 face: a region with registers at its start, and a window that data passes through (docs/protocol.md 10.5).

Saving, again and again: read pending_bytes, data_offset (which puts the next piece into the window), data_size, the
data. Resuming: read data_offset, write the data, write data_size. The window may be mapped; the registers may not.
Where the drafts are silent or disagree, this is what libvfio-user's v1 servers did, but for `reserved`: ignored, as
specified, in whatever pieces.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from types import MappingProxyType

from userdev.errors import ProtocolError
from vfio_user.migration.machine import RESUMING, SAVING, V1_VALUES
from vfio_user.migration.memory import Memfd
from vfio_user.migration.migration import Migration
from vfio_user.wire.constants import MIGRATION_REGION_TYPE, RegionFlags

WINDOW = 4096
"""Where the data is: the value of data_offset."""
WINDOW_SIZE = 1 << 20


class MigrationRegion:
    """The migration region as one client finds it, until `close`: `read` and `write` by offset."""

    size = WINDOW + WINDOW_SIZE
    flags = RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP
    sparse = ((WINDOW, WINDOW_SIZE),)
    type = MIGRATION_REGION_TYPE

    def __init__(self, migration: Migration) -> None:
        self._migration = migration
        self._file = Memfd("vfio-user-migration", self.size)  # which no client can make smaller under our feet
        self.fd = self._file.fd
        """The file to map; its offsets are the region's."""
        self._asked = False
        self._piece: int | None = None
        self._unwatch = migration.watch(self._start_over)

    def close(self) -> None:
        """The client goes."""
        self._unwatch()
        self._file.close()

    def read(self, offset: int, count: int) -> bytes:
        """Read a register, whole, or bytes of the window while saving.

        Raises:
            ProtocolError: EINVAL for other accesses, and registers read out of their sequence.
        """
        if (offset, count) in _REGISTERS:
            value = _REGISTERS[offset, count][0](self)
            return value.to_bytes(count, "little")
        self._check_window(offset, count, self._migration.state in SAVING)
        return bytes(self._file.view[offset : offset + count])

    def write(self, offset: int, data: bytes) -> None:
        """Write a register, whole, or bytes of the window while resuming.

        Raises:
            ProtocolError: EINVAL for other accesses; what the state's change, or the state loaded, is refused with.
        """
        if (offset, len(data)) in _REGISTERS:
            _REGISTERS[offset, len(data)][1](self, int.from_bytes(data, "little"))
            return
        self._check_window(offset, len(data), self._migration.state is RESUMING)
        self._file.view[offset : offset + len(data)] = data

    def _start_over(self) -> None:
        """There is another state, or one was asked for: an iteration under way is over."""
        self._asked = False
        self._piece = None

    def _check_window(self, offset: int, count: int, in_state: bool) -> None:
        if offset < WINDOW or offset + count > self.size or not in_state:
            raise _refuse(f"{count} bytes at {offset:#x} in state {self._migration.state.name}")

    def _read_state(self) -> int:
        return V1_VALUES[self._migration.state]

    def _write_state(self, value: int) -> None:
        self._migration.set_v1_state(value)  # where it is refused, the iteration goes on: its piece comes only once
        self._start_over()

    def _read_pending(self) -> int:
        """Begins an iteration; reading it again changes nothing."""
        if self._migration.state not in SAVING:
            return 0
        self._asked = True
        self._piece = None
        return self._migration.pending_state()

    def _read_offset(self) -> int:
        if self._migration.state in SAVING:
            if not self._asked:
                raise _refuse("data_offset read before pending_bytes")
            if self._piece is None:
                data = self._migration.read_state(WINDOW_SIZE)
                self._file.view[WINDOW : WINDOW + len(data)] = data
                self._piece = len(data)
        elif self._migration.state is not RESUMING:
            raise _refuse(f"data_offset read in state {self._migration.state.name}")
        return WINDOW

    def _read_size(self) -> int:
        if self._migration.state is RESUMING:
            return 0
        if self._piece is None:
            raise _refuse("data_size read before data_offset")
        return self._piece

    def _write_size(self, size: int) -> None:
        if self._migration.state is not RESUMING or size > WINDOW_SIZE:
            raise _refuse(f"data_size {size:#x} written in state {self._migration.state.name}")
        self._migration.write_state(bytes(self._file.view[WINDOW : WINDOW + size]))

    def _ignored_read(self) -> int:
        return 0

    def _ignored_write(self, value: int) -> None:
        pass

    def _read_only(self, value: int) -> None:
        raise _refuse("a read-only register written")


def _refuse(what: str) -> ProtocolError:
    return ProtocolError(f"migration region: {what}", errno.EINVAL)


def _within(offset: int, size: int) -> list[tuple[int, int]]:
    """Every access to bytes of a register and to none beside it, by (offset, width)."""
    return [(at, width) for at in range(offset, offset + size) for width in range(1, offset + size - at + 1)]


_REGISTERS: Mapping[
    tuple[int, int], tuple[Callable[[MigrationRegion], int], Callable[[MigrationRegion, int], None]]
] = MappingProxyType(
    {
        (0, 4): (MigrationRegion._read_state, MigrationRegion._write_state),
        **dict.fromkeys(_within(4, 4), (MigrationRegion._ignored_read, MigrationRegion._ignored_write)),
        (8, 8): (MigrationRegion._read_pending, MigrationRegion._read_only),
        (16, 8): (MigrationRegion._read_offset, MigrationRegion._read_only),
        (24, 8): (MigrationRegion._read_size, MigrationRegion._write_size),
    }
)
"""How each register is read and written, by (offset, width): vfio_device_migration_info of linux/vfio.h before 5.18."""
