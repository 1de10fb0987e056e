"""The regions that a client sees: the device's own, and behind them v1's migration region where the dialect has it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from userdev.errors import ProtocolError
from vfio_user.device import RegionInfo
from vfio_user.migration import MigrationRegion
from vfio_user.server.gate import has_registers
from vfio_user.wire import Dialect
from vfio_user.wire.constants import RegionFlags

if TYPE_CHECKING:
    from vfio_user.device import Function

_MMAP = int(RegionFlags.MMAP)


class Regions:
    """The regions of a device, described and accessed by index. Registers have a shorter way:
    `vfio_user.server.registers`.
    """

    def __init__(self, function: Function, dialect: Dialect, *, carries_fds: bool) -> None:
        self._function = function
        self.carries_fds = carries_fds
        """Whether descriptors can go to the client: the transport takes them along, and the client takes any."""
        self._migration = function.migration
        self._has_migration_region = dialect.migration_region and function.migration is not None
        self._migration_region: MigrationRegion | None = None

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._function.regions) + self._has_migration_region

    def info(self, index: int) -> RegionInfo:
        """One of them; without descriptors where none can go to the client.

        Raises:
            ProtocolError: (EINVAL) there is no such region.
        """
        if index >= self.count:
            raise ProtocolError(f"region {index}: the device has {self.count}")
        if (v1 := self._at(index)) is not None:
            region = RegionInfo(index, v1.size, v1.flags, v1.fd, 0, v1.sparse, v1.type)
        else:
            region = self._function.regions[index]
        if self.carries_fds:
            return region
        return replace(region, flags=region.flags & ~_MMAP, fd=None, sparse=(), io_fds=[])

    def read(self, index: int, offset: int, count: int) -> bytes:
        """Read a region.

        Raises:
            ProtocolError: (EINVAL) no such region, past its end, or the migration state forbids it.
        """
        if (v1 := self._at(index)) is not None:
            return v1.read(offset, count)
        self._check_access(index)
        return self._function.region_read(index, offset, count)

    def write(self, index: int, offset: int, data: bytes | memoryview) -> None:
        """Write a region; raises as `read`."""
        if (v1 := self._at(index)) is not None:
            v1.write(offset, bytes(data))
        else:
            self._check_access(index)
            self._function.region_write(index, offset, data)

    @property
    def accessible(self) -> bool:
        """Whether the migration state lets the device's own regions be accessed."""
        return self._migration is None or has_registers(self._migration.state)

    def close(self) -> None:
        """The client is gone."""
        if self._migration_region is not None:
            self._migration_region.close()

    def _check_access(self, index: int) -> None:
        if not self.accessible:
            raise ProtocolError(f"access to region {index} of a device that is stopped")

    def _at(self, index: int) -> MigrationRegion | None:
        """The migration region, if this is its index; made when it is asked for, as most clients never do."""
        if not self._has_migration_region or index != len(self._function.regions):
            return None
        if self._migration_region is None:
            assert self._migration is not None
            self._migration_region = MigrationRegion(self._migration)
        return self._migration_region
