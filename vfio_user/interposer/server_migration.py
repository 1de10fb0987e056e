"""How a server is migrated, whatever it has for that: the face that `migration` and `migration_region` give it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from userdev.memory.bitmap import IovaRange
from vfio_user.wire.constants import MigrationState, MigrationSupport


class ServerMigration(Protocol):
    """The migration of one session's server, whichever process that is. Failures are those of `own_calls`."""

    async def support(self) -> MigrationSupport | None:
        """The server's abilities; None: it cannot migrate."""

    async def state(self) -> MigrationState:
        """The device's migration state."""

    async def set_state(self, state: MigrationState, *, timeout: float = ...) -> None:
        """Take the device to another migration state; the server goes through those in between."""

    async def read(self, size: int) -> bytes:
        """At most `size` bytes of the device's state; none at its end, or (PRE_COPY) where there is nothing yet."""

    @property
    def piece_size(self) -> int:
        """Bytes of state that go to the server in one message now; more than these `write` cuts."""

    async def write(self, data: bytes) -> None:
        """Hand state to a device that is RESUMING."""

    async def start_logging(self, page_size: int, ranges: Iterable[IovaRange] | None = None) -> None:
        """Let the server log the pages it writes, in `ranges` or everywhere that is mapped."""

    async def stop_logging(self) -> None:
        """Let it end that."""

    async def report(self, page_size: int, run: IovaRange) -> bytes:
        """The dirty bitmap of a range since it was last asked for."""
